//! Checks on a descriptor that another process passed.
