//! Parts that several targets are made of.

mod fan_out;

pub use fan_out::FanOut;
