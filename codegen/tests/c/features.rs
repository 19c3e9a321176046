//! The functions of `golden/features.idl` as a library for C.

#[path = "../imported/mod.rs"]
mod imported;

#[allow(
    unused,
    unreachable_pub,
    private_interfaces,
    clippy::pedantic,
    reason = "the outputs are recorded whole"
)]
mod features {
    include!("../golden/features.rs");
}
