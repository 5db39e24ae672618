//! Descriptors that the kernel drops on their way (`MSG_CTRUNC`). Alone in its process: the limit of open files is
//! every thread's.

#![expect(clippy::unwrap_used, reason = "a test")]

use escp_sys::seqpacket::{pair, receive, send};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};

fn open() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_packet_that_lost_descriptors_is_an_error_and_the_rest_is_closed() {
    let (left, right) = pair().unwrap();
    let (probe, passed) = rustix::pipe::pipe().unwrap();
    send(&left, b"cut", &[passed.as_fd(); 20]).unwrap();
    send(&left, b"whole", &[passed.as_fd()]).unwrap();
    let before = open();
    let limit = getrlimit(Resource::Nofile);
    // Room for five: numbers are given out from the lowest free one.
    let few = u64::from(passed.as_raw_fd().unsigned_abs()) + 1 + 5;
    setrlimit(Resource::Nofile, Rlimit { current: Some(few), maximum: limit.maximum }).unwrap();
    let lost = receive(&right, &mut [0; 16]);
    setrlimit(Resource::Nofile, limit).unwrap();
    let error = lost.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData);
    assert!(error.to_string().contains("a descriptor was lost on its way"), "{error}");
    assert_eq!(open(), before, "what did arrive of them is still open");
    // The next packet is as it was.
    let next = receive(&right, &mut [0; 16]).unwrap();
    assert_eq!((next.length, next.descriptors.len()), (5, 1));
    drop((next, passed));
    // The last writer is gone: the pipe ends instead of waiting.
    assert_eq!(rustix::io::read(&probe, &mut [0; 1]).unwrap(), 0);
}
