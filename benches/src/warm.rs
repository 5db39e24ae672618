//! Memory that is there when it is first touched.
//!
//! A virtual machine's host may take free memory back (free page reporting, Documentation/mm/free_page_reporting.rst
//! of Linux), and gives it again, zeroed, when it is touched: at many times the cost of a page that stayed. Whoever
//! touched first would pay for all, and after every file that is removed again.

use escp_testkit::Checked;
use std::path::Path;

/// Smallest free block, as an order, that is reported to the host.
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// No free block has this order: MAX_PAGE_ORDER is 10, and kernels that insist on that bound report only what is
/// wholly free up to 4 MiB.
const NEVER: [&str; 2] = ["11", "10"];

/// While this lives, the host takes no free memory back, where that can be had.
#[derive(Debug)]
pub(crate) struct Kept {
    order: Option<String>,
}

impl Kept {
    pub(crate) fn new() -> Self {
        let before = std::fs::read_to_string(ORDER).ok();
        let order = before.filter(|_| NEVER.iter().any(|order| std::fs::write(ORDER, order).is_ok()));
        Self { order }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(order) = &self.order {
            // It was writable a moment ago, and nobody is left to be told.
            let _ = std::fs::write(ORDER, order.trim());
        }
    }
}

/// Touches memory by a file in `base`, a tmpfs: `bytes`, or three quarters of what is available where that is less.
pub(crate) fn touch(base: &Path, bytes: u64) -> Checked {
    let mut file = tempfile::tempfile_in(base)?;
    let block = vec![1; 1 << 20];
    for _ in 0..bytes.min(available() / 4 * 3) >> 20 {
        std::io::Write::write_all(&mut file, &block)?;
    }
    Ok(())
}

/// Bytes that can be had without swapping (MemAvailable of proc_meminfo(5)).
fn available() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(u64::MAX >> 10);
    kib << 10
}
