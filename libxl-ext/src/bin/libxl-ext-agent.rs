//! The program that carries out one operation of the C library; see `libxl_ext::agent`.
//!
//! Its standard input is the socket to the library. Nobody starts it by hand.

use libxl_ext::agent::serve::{Line, serve};
use libxl_ext::agent::{log, protocol};
use libxl_ext::port::Ports;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let socket = std::io::stdin().as_fd().try_clone_to_owned();
    let socket = socket.map(UnixStream::from).and_then(|socket| {
        // Fails on what is no socket.
        socket.local_addr()?;
        Ok((socket.try_clone()?, socket))
    });
    let Ok((reader, writer)) = socket else {
        eprintln!("libxl-ext-agent: only libxlext.so starts this program");
        return ExitCode::from(2);
    };
    let line = Arc::new(Line::new(writer));
    log::to_library(Arc::clone(&line));
    let for_panics = Arc::clone(&line);
    std::panic::set_hook(Box::new(move |panic| {
        for_panics.send(protocol::Report::Log(
            protocol::Level::Error,
            format!("libxl-ext-agent: {panic}"),
        ));
    }));
    let (stop, signalled) = (Arc::default(), Arc::default());
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        for flag in [&stop, &signalled] {
            // A daemon's service that is stopped ends its agents too. Only an unknown signal number fails.
            let _ = signal_hook::flag::register(signal, Arc::clone(flag));
        }
    }
    let rest = serve(reader, &line, stop, Ports::connect);
    line.close();
    if let Some(rest) = rest {
        rest.wait(&signalled);
    }
    ExitCode::SUCCESS
}
