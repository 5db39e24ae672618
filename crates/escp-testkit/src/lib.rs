//! Real sshd, filesystems and faults for the tests of escp.
