//! Whole-cluster tests with real processes: see `tests/`. This package has no library of its own.
