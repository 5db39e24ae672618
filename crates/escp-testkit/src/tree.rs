//! Making trees of files to move.

use crate::Checked;
use crate::users::{User, is_root};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Sizes at which something changes: nothing, one byte, around a sector, around where O_DIRECT begins, around the
/// default block, more.
pub const SIZES: [u64; 13] = [
    0,
    1,
    4095,
    4096,
    4097,
    MIB - 1,
    MIB,
    MIB + 1,
    BLOCK - 1,
    BLOCK,
    BLOCK + 1,
    3 * MIB + 12_345,
    16 * MIB + 1,
];

/// The default size of a block.
pub const BLOCK: u64 = 2 * MIB;

/// 2^20.
pub const MIB: u64 = 1024 * 1024;

/// Bytes that look random and are the same for the same seed: xorshift64* (Vigna, 2016).
#[derive(Debug, Clone)]
pub struct Noise(u64);

impl Noise {
    /// Starts the sequence that belongs to `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Fills a buffer.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for piece in buffer.chunks_mut(8) {
            piece.copy_from_slice(&self.number().to_le_bytes()[..piece.len()]);
        }
    }
}

/// Writes a file of `size` random bytes.
///
/// # Errors
/// The file system's.
pub fn file(path: &Path, size: u64, seed: u64) -> Checked {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut noise = Noise::new(seed);
    let mut buffer = vec![0; 64 * 1024];
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        noise.fill(&mut buffer[..length]);
        out.write_all(&buffer[..length])?;
        left -= length as u64;
    }
    out.flush()?;
    Ok(())
}

/// Writes a file of `size` bytes that compress well.
///
/// # Errors
/// The file system's.
pub fn text_file(path: &Path, size: u64) -> Checked {
    let line = b"the quick brown fox jumps over the lazy dog, again and again\n";
    let mut out = BufWriter::new(File::create(path)?);
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(line.len());
        out.write_all(&line[..length])?;
        left -= length as u64;
    }
    out.flush()?;
    Ok(())
}

/// Writes `size` bytes of made-up words, which compress about as well as a log or a table does.
///
/// # Errors
/// The file system's.
pub fn words(path: &Path, size: u64) -> Checked {
    /// The text comes again only after this, which no window of zstd's usual levels spans.
    const PERIOD: usize = 64 << 20;
    let mut noise = Noise::new(5);
    let mut words: Vec<Vec<u8>> = Vec::new();
    for _ in 0..4096 {
        let length = 2 + noise.number() % 9;
        #[expect(clippy::cast_possible_truncation, reason = "below 26")]
        let letters = (0..length).map(|_| b'a' + (noise.number() >> 32) as u8 % 26).collect();
        words.push(letters);
    }
    let wanted = usize::try_from(size).unwrap_or(usize::MAX).min(PERIOD);
    let mut text = Vec::with_capacity(wanted + 16);
    while text.len() < wanted {
        // Low numbers are likelier, as frequent words are.
        let (a, b) = (noise.number() >> 32, noise.number() >> 32);
        let word = &words[usize::try_from((a % 64) * (b % 64))? % words.len()];
        text.extend_from_slice(word);
        text.push(if a % 16 == 0 { b'\n' } else { b' ' });
    }
    let mut file = File::create(path)?;
    let mut left = size;
    while left > 0 {
        let length = left.min(text.len() as u64);
        file.write_all(&text[..usize::try_from(length)?])?;
        left -= length;
    }
    Ok(())
}

/// Makes a file of `size` bytes that is a hole but for a few data islands of 64 KiB, one at each end.
///
/// # Errors
/// The file system's.
pub fn sparse_file(path: &Path, size: u64, islands: u64) -> Checked {
    let file = File::create(path)?;
    file.set_len(size)?;
    let mut noise = Noise::new(size);
    let mut data = vec![0; 64 * 1024];
    for island in 0..islands {
        noise.fill(&mut data);
        let last = size.saturating_sub(data.len() as u64);
        let offset = if islands < 2 { 0 } else { last / (islands - 1) * island };
        file.write_all_at(&data, offset)?;
    }
    Ok(())
}

/// One file of each of [`SIZES`], named after it. Returns their names.
///
/// # Errors
/// The file system's.
pub fn sizes(directory: &Path) -> Checked<Vec<String>> {
    let mut names = Vec::new();
    for size in SIZES {
        let name = format!("size-{size}");
        file(&directory.join(&name), size, size)?;
        names.push(name);
    }
    Ok(names)
}

/// `count` small files, 0 to about 8 KiB, in directories of `per_directory`, nested to a depth of four.
///
/// # Errors
/// The file system's.
pub fn many(root: &Path, count: u64, per_directory: u64) -> Checked {
    let mut noise = Noise::new(count);
    let mut data = vec![0; 8192];
    noise.fill(&mut data);
    let mut directory = PathBuf::new();
    for index in 0..count {
        if index % per_directory == 0 {
            let number = index / per_directory;
            directory = root
                .join(format!("a{}", number % 3))
                .join(format!("b{}", number / 3 % 5))
                .join(format!("c{}", number / 15 % 7))
                .join(format!("d{number}"));
            std::fs::create_dir_all(&directory)?;
        }
        let length = usize::try_from(noise.number() % data.len() as u64)?;
        let length = if index % 50 == 0 { 0 } else { length };
        // Each file its own bytes, cheaply.
        data[..8].copy_from_slice(&index.to_le_bytes());
        std::fs::write(directory.join(format!("f{index}")), &data[..length])?;
    }
    Ok(())
}

/// Names that break careless programs; each is one component.
#[must_use]
pub fn strange_names() -> Vec<OsString> {
    let mut names: Vec<OsString> = [
        "with space",
        " leading and trailing ",
        "new\nline",
        "tab\tand\u{7}bell",
        "-leading-dash",
        "--help",
        "~tilde",
        "colon:inside",
        "star*question?[bracket]{brace}",
        "quote'double\"back\\slash",
        "$HOME `id` $(id) ; & | < > #",
        "%n%s",
        "...",
        "..hidden",
        "\u{1b}[31mred\u{1b}[0m",
        "ünïcödé-文字",
    ]
    .into_iter()
    .map(OsString::from)
    .collect();
    names.push(OsString::from_vec(b"not-utf8-\xff\xfe\x80".to_vec()));
    names.push(OsStr::from_bytes(&[b'n'; 255]).to_os_string());
    names.push(OsStr::from_bytes(&[0xe9; 255]).to_os_string());
    names
}

/// A tree with all that a tree may hold: strange names for files and directories, empty directories, every
/// size, modes and times.
///
/// # Errors
/// The file system's.
pub fn everything(root: &Path) -> Checked {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(root)?;
    for (index, name) in strange_names().iter().enumerate() {
        file(&root.join(name), 100 + index as u64, index as u64)?;
    }
    let inner = root.join("inner");
    std::fs::create_dir(&inner)?;
    for name in strange_names() {
        std::fs::create_dir(inner.join(&name))?;
        std::fs::write(inner.join(&name).join("x"), name.as_bytes())?;
    }
    std::fs::create_dir_all(root.join("empty/also empty/and this"))?;
    let sizes_in = root.join("sizes");
    std::fs::create_dir(&sizes_in)?;
    sizes(&sizes_in)?;
    let modes = root.join("modes");
    std::fs::create_dir(&modes)?;
    for mode in [0o400, 0o444, 0o600, 0o640, 0o664, 0o700, 0o755, 0o777] {
        let path = modes.join(format!("{mode:o}"));
        std::fs::write(&path, format!("{mode:o}"))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    std::fs::create_dir(root.join("read-only directory"))?;
    std::fs::write(root.join("read-only directory/file"), "x")?;
    std::fs::set_permissions(root.join("read-only directory"), std::fs::Permissions::from_mode(0o555))?;
    Ok(())
}

/// A path below `root` of `components` directories of 200-byte names, with a file at its end; longer than 4096
/// bytes from 21 on, so it is made step by step.
///
/// # Errors
/// The file system's.
pub fn deep(root: &Path, components: u32, owner: &User) -> Checked {
    use rustix::fs::{Gid, Mode, OFlags, Uid, fchown, mkdirat, open, openat};
    let own = |fd: &dyn std::os::fd::AsFd| -> Checked {
        if is_root() {
            fchown(fd.as_fd(), Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
        }
        Ok(())
    };
    let mut here = open(root, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
    let name = "d".repeat(200);
    for _ in 0..components {
        mkdirat(&here, name.as_str(), Mode::from_raw_mode(0o755))?;
        here = openat(&here, name.as_str(), OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())?;
        own(&here)?;
    }
    let file = openat(&here, "end", OFlags::CREATE | OFlags::WRONLY, Mode::from_raw_mode(0o644))?;
    own(&file)?;
    File::from(file).write_all(b"the end")?;
    Ok(())
}
