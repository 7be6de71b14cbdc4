mod blocks;
mod galois;
mod geometry;
mod plan;
