//! The engines themselves: what reaches the kernel, what is chosen when io_uring is refused, and that small
//! limits only slow them down.
