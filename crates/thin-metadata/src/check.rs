//! placeholder for the moment
