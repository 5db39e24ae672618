//! What can be seen from outside: metrics that count to the byte, and memory that does not grow with files.
