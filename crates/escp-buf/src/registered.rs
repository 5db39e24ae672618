//! Registration of a pool's slots with the thread's ring: the one file that implements tokio-uring's
//! (unsafe) buffer traits.

use std::io;
use tokio_uring::buf::fixed::FixedBufRegistry;
use tokio_uring::buf::{IoBuf, IoBufMut};

/// The first slots of a pool, registered in slot order.
pub(crate) struct Registration {
    registry: FixedBufRegistry<Slot>,
    slots: usize,
}

impl Registration {
    /// Registers slots, given by address and length, in order.
    pub(crate) fn begin(slots: impl ExactSizeIterator<Item = (*mut u8, usize)>) -> io::Result<Self> {
        let count = slots.len();
        let registry = FixedBufRegistry::new(slots.map(|(start, len)| Slot { start, len }));
        registry.register()?;
        Ok(Self { registry, slots: count })
    }

    pub(crate) fn end(self) -> io::Result<()> {
        self.registry.unregister()
    }

    pub(crate) fn slots(&self) -> usize {
        self.slots
    }
}

/// One slot, as tokio-uring wants to see it. Only its address and length are used; slots are never checked
/// out of the registry: a [`crate::Buf`] is the right to a slot.
struct Slot {
    start: *mut u8,
    len: usize,
}

// SAFETY: the address is of a mapping that does not move. It may be unmapped while tokio-uring still holds
// this value, but tokio-uring only passes the address to the kernel, once, at registration, when the pool is
// alive; the kernel pins the pages themselves.
unsafe impl IoBuf for Slot {
    fn stable_ptr(&self) -> *const u8 {
        self.start
    }

    fn bytes_init(&self) -> usize {
        self.len
    }

    fn bytes_total(&self) -> usize {
        self.len
    }
}

// SAFETY: as above; the mapping is initialised (zeros) throughout, so there is nothing to record.
unsafe impl IoBufMut for Slot {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}

#[cfg(test)]
mod tests {
    use crate::Pool;

    #[test]
    fn slots_used_so_far_are_registered() {
        // A ring may be refused on this machine (old kernel, sysctl, seccomp): nothing to test then.
        if io_uring_refused() {
            return escp_testkit::say_skipped(&escp_testkit::test_name(), "io_uring is refused here");
        }
        tokio_uring::start(async {
            let pool = Pool::new(4, 4096).unwrap();
            let (first, second) = (pool.take().unwrap(), pool.take().unwrap());
            assert_eq!(first.registered(), None);
            pool.register().unwrap();
            assert_eq!((first.registered(), second.registered()), (Some(0), Some(1)));
            let third = pool.take().unwrap();
            assert_eq!(third.registered(), None);
            pool.register().unwrap();
            assert_eq!(third.registered(), Some(2));
        });
    }

    fn io_uring_refused() -> bool {
        std::panic::catch_unwind(|| tokio_uring::start(async {})).is_err()
    }
}
