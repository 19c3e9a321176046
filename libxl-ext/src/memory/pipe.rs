//! How much the pipes hold that memory goes through.

use std::os::fd::AsFd;

/// In bytes, the first that the kernel grants. Whoever writes and whoever reads wake each other up less often the more it
/// is: 256 MiB took 2.2 to 3 s in the lab, with two emulated CPUs, by 1 MiB, and 0.8 to 0.9 s by 16 MiB.
const SIZES: [usize; 3] = [64 << 20, 16 << 20, 1 << 20];

/// Has a pipe hold much. A smaller one works as well, only slower.
pub(crate) fn widen(end: impl AsFd) {
    let granted = |size: &usize| rustix::pipe::fcntl_setpipe_size(&end, *size).is_ok();
    let _ = SIZES.iter().any(granted);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::fcntl_getpipe_size;

    #[test]
    fn a_pipe_holds_more_than_it_did() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let before = fcntl_getpipe_size(&writer).unwrap();
        widen(&writer);
        let after = fcntl_getpipe_size(&writer).unwrap();
        assert!(after > before && SIZES.contains(&after), "{after}");
    }
}
