//! The reference store: everything in one mutex, virtual or real time. Tests and the simulator run on it.
