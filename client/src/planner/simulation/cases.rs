//! Seeds and event lists that failed once.
