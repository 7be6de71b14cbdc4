//! Parts that several targets are made of.
