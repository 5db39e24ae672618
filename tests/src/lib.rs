//! Whole-program tests of escp.
