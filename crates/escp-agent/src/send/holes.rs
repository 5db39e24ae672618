//! Where a sparse file holds data.

use escp_engine_api::{Extent, ExtentKind};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// Extents start and end here, except at the end of the file: a page, and the unit of most file systems.
const GRAIN: u64 = 4096;
/// Most extents of one file. Beyond it the smallest holes travel as zeros, so that a file with millions of
/// holes takes no more memory than this.
const MOST_EXTENTS: usize = 4096;

/// Covers the file with extents, every byte once and in order. Without holes, or where the file system
/// cannot tell, that is one extent.
pub(super) fn extents(file: BorrowedFd<'_>, number: u64, size: u64) -> Vec<Extent> {
    if size == 0 {
        return Vec::new();
    }
    let map = data_ranges(file, size).unwrap_or_else(|_| vec![(0, size)]);
    cover(number, size, &map)
}

/// Ranges that hold data, rising, aligned outward.
fn data_ranges(file: BorrowedFd<'_>, size: u64) -> Result<Vec<(u64, u64)>, Errno> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut smallest_hole = 0;
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No data behind this offset.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = seek(file, SeekFrom::Hole(start))?;
        if start >= size || end <= start {
            break;
        }
        at = end;
        let start = start / GRAIN * GRAIN;
        let end = end.div_ceil(GRAIN).saturating_mul(GRAIN).min(size);
        match ranges.last_mut() {
            Some(last) if start.saturating_sub(last.1) <= smallest_hole => last.1 = end.max(last.1),
            _ => ranges.push((start, end)),
        }
        // A hole and a range of data are two extents.
        while ranges.len() > MOST_EXTENTS / 2 - 1 {
            smallest_hole = (smallest_hole * 2).max(GRAIN);
            ranges = merge(&ranges, smallest_hole);
        }
    }
    Ok(ranges)
}

/// Joins ranges whose distance is at most `hole`.
fn merge(ranges: &[(u64, u64)], hole: u64) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for &(start, end) in ranges {
        match merged.last_mut() {
            Some(last) if start - last.1 <= hole => last.1 = end,
            _ => merged.push((start, end)),
        }
    }
    merged
}

fn cover(number: u64, size: u64, data: &[(u64, u64)]) -> Vec<Extent> {
    let mut extents = Vec::with_capacity(data.len() * 2 + 1);
    let mut add = |kind, start: u64, end: u64| {
        if end > start {
            extents.push(Extent { file: number, offset: start, length: end - start, kind });
        }
    };
    let mut at = 0;
    for &(start, end) in data {
        add(ExtentKind::Hole, at, start);
        add(ExtentKind::Data, start, end);
        at = end;
    }
    add(ExtentKind::Hole, at, size);
    extents
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    fn check_cover(extents: &[Extent], size: u64) {
        let mut at = 0;
        for extent in extents {
            assert_eq!(extent.offset, at);
            assert!(extent.length > 0);
            at += extent.length;
        }
        assert_eq!(at, size);
    }

    #[test]
    fn every_byte_is_covered_once_and_holes_are_found() {
        let file: File = tempfile::tempfile().unwrap();
        let size = (1 << 30) + 5;
        file.set_len(size).unwrap();
        file.write_all_at(b"x", 300 << 20).unwrap();
        file.write_all_at(b"end", size - 3).unwrap();
        let extents = extents(file.as_fd(), 7, size);
        check_cover(&extents, size);
        let data: u64 = extents.iter().filter(|e| e.kind == ExtentKind::Data).map(|e| e.length).sum();
        assert!(data < 1 << 20, "{extents:?}");
        assert!(extents.iter().all(|e| e.file == 7 && e.offset % GRAIN == 0));
    }

    #[test]
    fn a_file_of_one_hole_and_an_empty_file() {
        let file: File = tempfile::tempfile().unwrap();
        assert_eq!(extents(file.as_fd(), 1, 0), []);
        file.set_len(10_000).unwrap();
        let extents = extents(file.as_fd(), 1, 10_000);
        check_cover(&extents, 10_000);
    }

    #[test]
    fn the_smallest_holes_go_first_when_there_are_too_many() {
        let file: File = tempfile::tempfile().unwrap();
        let size = 6000 * 8192 + (1 << 30);
        file.set_len(size).unwrap();
        for index in 0..6000_u64 {
            file.write_all_at(b"x", index * 8192).unwrap();
        }
        file.write_all_at(b"x", size - 1).unwrap();
        let extents = extents(file.as_fd(), 1, size);
        check_cover(&extents, size);
        assert!(extents.len() <= MOST_EXTENTS);
        let hole = extents.iter().filter(|e| e.kind == ExtentKind::Hole).map(|e| e.length).max().unwrap();
        assert!(hole > 1 << 29, "the large hole is kept: {hole}");
    }
}
