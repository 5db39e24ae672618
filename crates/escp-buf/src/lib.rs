//! Where escp's bytes sit: aligned buffer pools with a written budget.
