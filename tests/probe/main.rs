//! Bad input, clients that die and clients without permission, on the level of the ioctl.

mod arms;
mod compare;
mod deaths;
mod garbage;
