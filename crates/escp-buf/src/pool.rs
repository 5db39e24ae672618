//! The pool and its slots.

use crate::registered::Registration;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::rc::Rc;

/// Bytes before the body of a slot: room for a record's IV and header, and one page, so that the body is
/// aligned.
pub const HEADROOM: usize = 4096;
/// Where the body of a slot starts.
pub const BODY: usize = HEADROOM;
/// Bytes after the body of a slot: a record's tag, and one page so that the next slot is aligned.
pub const TAILROOM: usize = 4096;

/// Size of a huge page (x86-64 and arm64 with pages of 4 KiB). The kernel aligns a mapping to it only when its length is
/// a multiple (`thp_get_unmapped_area` of mm/huge_memory.c).
const HUGE_PAGE: usize = 2 << 20;

/// Makes huge pages of what is mapped already (MADV_COLLAPSE, madvise(2), Linux 6.1). libc has no name for it.
const COLLAPSE: libc::c_int = 25;

/// Slots of equal size for one thread, handed out as [`Buf`]s.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<Inner>,
}

struct Inner {
    region: NonNull<u8>,
    /// Bytes that are mapped: the slots, and what is left of the last huge page.
    mapped: usize,
    slot_len: usize,
    slots: usize,
    /// Slots that are free, most recently used last, so that warm memory is used again first.
    free: RefCell<Vec<u16>>,
    /// Slots handed out at least once.
    touched: Cell<usize>,
    huge_pages: Cell<bool>,
    registration: RefCell<Option<Registration>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool")
            .field("slots", &self.inner.slots)
            .field("free", &self.inner.free.borrow().len())
            .field("touched", &self.inner.touched.get())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// Reserves address space for `slots` slots with bodies of `body_len` bytes. No memory is used yet.
    ///
    /// # Errors
    /// `InvalidInput` when `body_len` is no multiple of 4096 or there are no or more than 16,384 slots (the
    /// kernel's limit of registered buffers); those of mmap(2).
    pub fn new(slots: usize, body_len: usize) -> io::Result<Self> {
        if slots == 0 || slots > 16_384 || body_len == 0 || !body_len.is_multiple_of(4096) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "slots or body length of a pool"));
        }
        let slot_len = HEADROOM + body_len + TAILROOM;
        let whole = slots.checked_mul(slot_len).and_then(|length| length.checked_next_multiple_of(HUGE_PAGE));
        let mapped = whole.ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "pool larger than the address space")
        })?;
        // SAFETY: a fresh private mapping at an address of the kernel's choice aliases nothing.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                mapped,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let region = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::new(io::ErrorKind::OutOfMemory, "mapped at address 0"))?;
        let free = (0..u16::try_from(slots).unwrap_or(u16::MAX)).rev().collect();
        Ok(Self {
            inner: Rc::new(Inner {
                region,
                mapped,
                slot_len,
                slots,
                free: RefCell::new(free),
                touched: Cell::new(0),
                huge_pages: Cell::new(false),
                registration: RefCell::new(None),
            }),
        })
    }

    /// Takes a free slot; `None` when all are out. Its contents are those of its last user.
    #[must_use]
    pub fn take(&self) -> Option<Buf> {
        let slot = self.inner.free.borrow_mut().pop()?;
        self.inner.touched.set(self.inner.touched.get().max(usize::from(slot) + 1));
        Some(Buf { pool: Rc::clone(&self.inner), slot })
    }

    /// Asks for huge pages, where they can be had: fewer page faults and TLB misses for full blocks. Without it a slot
    /// takes as much memory as the records in it, not 2 MiB. The slots that are warm already, which are used most, are
    /// collapsed into huge pages where the kernel can do that.
    pub fn prefer_huge_pages(&self) {
        if !self.inner.huge_pages.replace(true) {
            let (start, mapped) = (self.inner.region.as_ptr(), self.inner.mapped);
            // SAFETY: the range is exactly the pool's mapping, and the advice does not change its contents.
            let advised = unsafe { rustix::mm::madvise(start.cast(), mapped, Advice::LinuxHugepage) };
            // A kernel without huge pages refuses; small ones do as well.
            let _ = advised;
            let warm = (self.inner.touched.get() * self.inner.slot_len).next_multiple_of(HUGE_PAGE);
            // SAFETY: the range begins with the mapping and ends inside it: whole huge pages are mapped. What it
            // contains stays what it is.
            let collapsed = unsafe { libc::madvise(start.cast(), warm, COLLAPSE) };
            // As above: what stays in small pages works.
            let _ = collapsed;
        }
    }

    /// Slots that are handed out now.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.inner.slots - self.inner.free.borrow().len()
    }

    /// Bytes of memory this pool can come to use.
    #[must_use]
    pub fn budget(&self) -> usize {
        self.inner.slots * self.inner.slot_len
    }

    /// Registers every slot that was used so far with the tokio-uring runtime of this thread, so that the
    /// kernel need not pin its pages for each operation. Slots first used later are not registered until
    /// this is called again.
    ///
    /// # Errors
    /// Those of io_uring_register(2), ENOMEM for one at the limit of locked memory: carry on without.
    ///
    /// # Panics
    /// Outside a tokio-uring runtime.
    pub fn register(&self) -> io::Result<()> {
        let slots = self.inner.touched.get();
        let mut registration = self.inner.registration.borrow_mut();
        if registration.as_ref().is_some_and(|existing| existing.slots() == slots) {
            return Ok(());
        }
        if let Some(existing) = registration.take() {
            existing.end()?;
        }
        *registration = Some(Registration::begin((0..slots).map(|slot| self.inner.slot(slot)))?);
        Ok(())
    }

    /// Whether slots are registered.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.inner.registration.borrow().is_some()
    }
}

impl Inner {
    /// The address and length of a slot.
    fn slot(&self, slot: usize) -> (*mut u8, usize) {
        debug_assert!(slot < self.slots);
        // SAFETY: `slot` is below `slots`, so the offset stays inside the one mapping of the region.
        let start = unsafe { self.region.as_ptr().add(slot * self.slot_len) };
        (start, self.slot_len)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Every Buf holds an Rc of this, so all slots are back: no operation the runtime knows of is in
        // flight. Slots that were lost with a runtime that was torn down under load keep the Rc alive, and
        // the mapping with it: leaking is right where the kernel may still write.
        // SAFETY: the region was mapped with this length by `new`, and no Buf refers to it any more.
        let unmapped = unsafe { rustix::mm::munmap(self.region.as_ptr().cast(), self.mapped) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The right to one slot of a [`Pool`]. Dropping it returns the slot.
///
/// While a kernel operation uses the slot, the operation owns the `Buf`; that is what makes the slices below
/// exclusive.
pub struct Buf {
    pool: Rc<Inner>,
    slot: u16,
}

impl std::fmt::Debug for Buf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buf({})", self.slot)
    }
}

impl Buf {
    /// Bytes of the slot.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pool.slot_len
    }

    /// Never: a slot has at least its head- and tailroom.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the body.
    #[must_use]
    pub fn body_len(&self) -> usize {
        self.pool.slot_len - HEADROOM - TAILROOM
    }

    /// The slot's bytes. Never uninitialised: the kernel maps zeros.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let (start, len) = self.pool.slot(usize::from(self.slot));
        // SAFETY: the slot lies in the mapping and is initialised; this Buf alone has the right to it, and
        // `&self` keeps `bytes_mut` away.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// The slot's bytes, to change them.
    #[must_use]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let (start, len) = self.pool.slot(usize::from(self.slot));
        // SAFETY: as for `bytes`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(start, len) }
    }

    /// The address of `range` of the slot, and its length, for a kernel operation that will own this Buf.
    ///
    /// # Panics
    /// When `range` is not inside the slot: the kernel must never be given an address outside.
    #[must_use]
    pub fn window(&mut self, range: Range<usize>) -> (*mut u8, u32) {
        let window = &mut self.bytes_mut()[range];
        (window.as_mut_ptr(), u32::try_from(window.len()).unwrap_or(u32::MAX))
    }

    /// The index under which this slot is registered with the thread's ring, if it is.
    #[must_use]
    pub fn registered(&self) -> Option<u16> {
        let registration = self.pool.registration.borrow();
        registration.as_ref().filter(|r| usize::from(self.slot) < r.slots()).map(|_| self.slot)
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.free.borrow_mut().push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_disjoint_aligned_and_come_back() {
        let pool = Pool::new(3, 8192).unwrap();
        let mut bufs: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((bufs.len(), pool.outstanding()), (3, 3));
        for (value, buf) in (1_u8..).zip(&mut bufs) {
            assert_eq!(buf.body_len(), 8192);
            assert!(buf.bytes()[BODY..].as_ptr().addr().is_multiple_of(4096));
            buf.bytes_mut().fill(value);
        }
        for (value, buf) in (1_u8..).zip(&bufs) {
            assert!(buf.bytes().iter().all(|&byte| byte == value));
        }
        drop(bufs);
        assert_eq!(pool.outstanding(), 0);
        assert!(pool.take().is_some());
    }

    #[test]
    fn a_buf_outlives_its_pool() {
        let mut buf = Pool::new(1, 4096).unwrap().take().unwrap();
        buf.bytes_mut().fill(9);
        assert_eq!(buf.bytes()[BODY], 9);
    }

    /// KiB of huge pages in the mapping that begins where a pool's does; `None` where the kernel gives none on request.
    fn huge_kib(pool: &Pool) -> Option<u64> {
        let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").ok()?;
        let start = format!("{:x}-", pool.inner.region.as_ptr().addr());
        let maps = std::fs::read_to_string("/proc/self/smaps").ok()?;
        let ours = maps.lines().skip_while(|line| !line.starts_with(&start));
        let huge = ours.into_iter().find_map(|line| line.strip_prefix("AnonHugePages:"))?;
        if setting.contains("[never]") { None } else { huge.trim().trim_end_matches(" kB").parse().ok() }
    }

    #[test]
    fn a_warm_slot_moves_to_huge_pages_as_it_is() -> escp_testkit::Checked {
        let pool = Pool::new(4, 2 << 20).unwrap();
        let mut buf = pool.take().unwrap();
        buf.bytes_mut().fill(7);
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
        let Some(before) = huge_kib(&pool).filter(|_| (numbers.next(), numbers.next()) >= (Some(6), Some(1)))
        else {
            escp_testkit::skip!("kernel {release} makes no huge pages of small ones on request");
        };
        pool.prefer_huge_pages();
        assert!(buf.bytes().iter().all(|&byte| byte == 7));
        let after = huge_kib(&pool).unwrap();
        assert!(after > before, "{before} and {after} KiB");
        Ok(())
    }

    #[test]
    fn refuses_nonsense() {
        for (slots, body_len) in [(0, 4096), (1, 0), (1, 4095), (20_000, 4096)] {
            assert!(Pool::new(slots, body_len).is_err(), "{slots} slots of {body_len}");
        }
    }

    #[test]
    #[should_panic(expected = "range end index")]
    fn no_window_beyond_the_slot() {
        let mut buf = Pool::new(1, 4096).unwrap().take().unwrap();
        let _ = buf.window(0..HEADROOM + 4096 + TAILROOM + 1);
    }
}
