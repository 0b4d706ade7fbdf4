//! The cache of reads: answers from it are etcd's own, byte for byte, at the right revision and for the right caller,
//! and etcd is asked once for all who ask the same.

mod crowd;
mod exact;
mod histories;
mod ordering;
mod raw;
mod restored;
mod rights;
