//! What the agent does, for the log of the application.

use super::protocol::{Level, Report};
use super::serve::Line;
use std::fmt::{self, Write as _};
use std::sync::Arc;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Sends everything that is traced from here on to the library.
pub fn to_library(line: Arc<Line>) {
    // There is no other: this is the first call of the process.
    let _ = tracing::subscriber::set_global_default(ToLibrary(line));
}

struct ToLibrary(Arc<Line>);

impl Subscriber for ToLibrary {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::DEBUG
    }

    fn event(&self, event: &Event<'_>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warn,
            tracing::Level::INFO => Level::Detail,
            _ => Level::Debug,
        };
        let mut text = Text(String::new());
        event.record(&mut text);
        self.0.send(Report::Log(level, text.0));
    }

    // The library has no spans.
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

/// The message of an event, followed by its fields.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.0, "{value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
