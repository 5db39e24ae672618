//! The kernel's reasons in words.

use rustix::io::Errno;

/// The kernel's words for `error`, without the number Rust adds.
pub(crate) fn why(error: Errno) -> String {
    let text = std::io::Error::from(error).to_string();
    match text.rfind(" (os error") {
        Some(end) => text.get(..end).unwrap_or(&text).to_owned(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_without_numbers() {
        assert_eq!(why(Errno::NOENT), "No such file or directory");
        assert_eq!(why(Errno::NOSPC), "No space left on device");
    }
}
