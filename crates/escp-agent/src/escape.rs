//! Names and foreign text made fit for a terminal or a log.

use std::fmt::Write;

/// `bytes` as text: UTF-8 stays, control characters and bytes that are not UTF-8 become `\n`, `\t` or
/// `\xNN`. A backslash stays as it is, so that escaping twice changes nothing.
#[must_use]
pub fn escaped(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_escaped(&mut out, character);
        }
        for byte in chunk.invalid() {
            push_byte(&mut out, *byte);
        }
    }
    out
}

/// Foreign text (an error sentence of the peer) made visible likewise, at most `limit` characters of it.
#[must_use]
pub fn foreign_text(text: &str, limit: usize) -> String {
    let mut out = String::new();
    text.chars().take(limit).for_each(|character| push_escaped(&mut out, character));
    out
}

fn push_escaped(out: &mut String, character: char) {
    match character {
        '\n' => out.push_str("\\n"),
        '\t' => out.push_str("\\t"),
        '\r' => out.push_str("\\r"),
        // C0, DEL and C1; and the marks that end a line or reorder the text around them.
        _ if character.is_control() || misleads(character) => {
            let mut utf8 = [0_u8; 4];
            for byte in character.encode_utf8(&mut utf8).bytes() {
                push_byte(out, byte);
            }
        }
        _ => out.push(character),
    }
}

fn misleads(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn push_byte(out: &mut String, byte: u8) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\\x{byte:02x}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_text_and_shows_everything_else() {
        assert_eq!(escaped("naïve 名.txt".as_bytes()), "naïve 名.txt");
        assert_eq!(escaped(b"a\nb\x1b[31m\\\xff"), "a\\nb\\x1b[31m\\\\xff");
        assert_eq!(escaped("\u{202e}gpj.exe".as_bytes()), "\\xe2\\x80\\xaegpj.exe");
    }

    #[test]
    fn foreign_text_is_bounded_and_harmless() {
        assert_eq!(foreign_text("no\x07 space\\n", 100), "no\\x07 space\\n");
        assert_eq!(foreign_text("abcdef", 3), "abc");
    }
}
