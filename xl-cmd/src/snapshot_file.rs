//! `snapshot-create --config FILE`: a description of a snapshot in the syntax of xl's configuration files
//! (xl.cfg(5)). Settings that nobody knows are refused: they would be taken for obeyed.

use crate::args::disk_choice;
use libxl_ext::model::disk::DiskKind;
use libxl_ext::model::name::SnapshotName;
use libxl_ext::plan::{DiskChoice, Take};
use libxl_ext::{Error, ErrorKind, Result};
use nom::branch::alt;
use nom::bytes::complete::{tag, take_while, take_while1};
use nom::character::complete::{char, line_ending, multispace1, not_line_ending, one_of, space0};
use nom::combinator::{cut, eof, map, peek, recognize, value, verify};
use nom::multi::{many0, separated_list0};
use nom::sequence::{delimited, preceded, terminated};
use nom::{IResult, Parser};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest file that is read, in bytes.
const FILE_MAX: u64 = 64 << 10;

/// What a file asks for; nothing is said where there is none.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SnapshotFile {
    pub(crate) name: Option<SnapshotName>,
    pub(crate) description: Option<String>,
    pub(crate) memory: Option<Memory>,
    pub(crate) kind: Option<DiskKind>,
    pub(crate) disks: Vec<DiskChoice>,
}

/// `memory = `
#[derive(Debug, PartialEq)]
pub(crate) enum Memory {
    Yes,
    No,
    /// In a file of this name.
    File(PathBuf),
}

/// Reads a file.
///
/// # Errors
/// If it cannot be read, or is none; with the line that is not understood.
pub(crate) fn read(path: &Path) -> Result<SnapshotFile> {
    let failed = |error| Error::io(format!("read {}", path.display()), error);
    let refuse = |what: String| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("{}: {what}", path.display()),
        )
    };
    // Opening a pipe would wait for somebody who writes to it.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(refuse("it is no file".into()));
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(refuse(format!("it is longer than {FILE_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| refuse("it is not in UTF-8".into()))?;
    understand(&text).map_err(refuse)
}

fn understand(text: &str) -> Result<SnapshotFile, String> {
    let line_of = |left: usize| 1 + text[..text.len() - left].matches('\n').count();
    let settings = match settings(text) {
        Ok((_, settings)) => settings,
        Err(nom::Err::Error(error) | nom::Err::Failure(error)) => {
            let rest = error.input.lines().next().unwrap_or_default();
            let rest: String = rest.chars().take(40).collect();
            let line = line_of(error.input.len());
            return Err(match &*rest {
                "" => format!("line {line} ends too early"),
                rest => format!("line {line} is not understood at {rest:?}"),
            });
        }
        Err(nom::Err::Incomplete(_)) => return Err("it ends too early".into()),
    };
    let mut file = SnapshotFile::default();
    for (at, setting) in settings.iter().enumerate() {
        let line = line_of(setting.left);
        if settings[..at].iter().any(|other| other.key == setting.key) {
            return Err(format!("line {line}: {} is set twice", setting.key));
        }
        file.set(setting.key, &setting.value)
            .map_err(|why| format!("line {line}: {why}"))?;
    }
    Ok(file)
}

impl SnapshotFile {
    fn set(&mut self, key: &str, value: &Value) -> Result<(), String> {
        match (key, value) {
            ("name", Value::Text(name)) => {
                let name = SnapshotName::new(name.as_str()).map_err(|error| error.report())?;
                self.name = Some(name);
            }
            ("description", Value::Text(text)) => self.description = Some(text.clone()),
            ("memory", Value::Text(text)) => {
                self.memory = Some(match text.as_str() {
                    "yes" => Memory::Yes,
                    "no" => Memory::No,
                    path if path.starts_with('/') => Memory::File(path.into()),
                    _ => return Err("memory is \"yes\", \"no\" or an absolute path".into()),
                });
            }
            ("type", Value::Text(text)) => {
                self.kind = Some(match text.as_str() {
                    "internal" => DiskKind::Internal,
                    "external" => DiskKind::External,
                    _ => return Err("type is \"internal\" or \"external\"".into()),
                });
            }
            ("disks", Value::List(disks)) => {
                self.disks = disks
                    .iter()
                    .map(|disk| one_disk(disk))
                    .collect::<Result<_, _>>()?;
            }
            ("disks", Value::Text(_)) => return Err("disks is a list, in brackets".into()),
            ("name" | "description" | "memory" | "type", Value::List(_)) => {
                return Err(format!("{key} is no list"));
            }
            (other, _) => {
                return Err(format!(
                    "{other} is none of name, description, memory, type and disks"
                ));
            }
        }
        Ok(())
    }
}

/// `PATH,FORMAT,VDEV` for an external snapshot, `,,VDEV` for an internal one, or what `--disk` takes.
fn one_disk(text: &str) -> Result<DiskChoice, String> {
    let mut fields = text.rsplitn(3, ',');
    let fields = (fields.next(), fields.next(), fields.next());
    let (Some(vdev), Some(format), Some(path)) = fields else {
        return disk_choice(text);
    };
    if text.contains("snapshot=") || text.contains(",file=") {
        return disk_choice(text);
    }
    if vdev.is_empty() {
        return Err(format!("{text:?} names no disk"));
    }
    let choice = |kind, file| DiskChoice {
        vdev: vdev.to_owned(),
        take: Some(Take::As(kind)),
        file,
    };
    match (path, format) {
        ("", "") => Ok(choice(DiskKind::Internal, None)),
        ("", _) => Err(format!("{text:?} has a format and no path")),
        (path, "qcow2") => Ok(choice(DiskKind::External, Some(path.into()))),
        (_, format) => Err(format!(
            "{text:?}: the new image is in the format qcow2, not {format:?}"
        )),
    }
}

/// One setting, and how much of the text is left where it begins.
struct Setting<'a> {
    left: usize,
    key: &'a str,
    value: Value,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    List(Vec<String>),
}

fn settings(text: &str) -> IResult<&str, Vec<Setting<'_>>> {
    let between = |input| {
        let blank = alt((multispace1, tag(";"), comment));
        recognize(many0(blank)).parse(input)
    };
    delimited(between, many0(terminated(setting, between)), eof).parse(text)
}

fn setting(input: &str) -> IResult<&str, Setting<'_>> {
    let left = input.len();
    let (input, key) = verify(
        take_while1(|c: char| c.is_ascii_alphanumeric() || c == '_'),
        |key: &str| key.starts_with(|c: char| c.is_ascii_alphabetic()),
    )
    .parse(input)?;
    let equals = delimited(space0, char('='), space0);
    let (input, value) =
        preceded(cut(equals), cut(alt((list, map(atom, Value::Text))))).parse(input)?;
    let end = alt((line_ending, tag(";"), tag("#"), eof));
    let (input, _) = cut(preceded(space0, peek(end))).parse(input)?;
    Ok((input, Setting { left, key, value }))
}

fn list(input: &str) -> IResult<&str, Value> {
    let blank = |input| recognize(many0(alt((multispace1, comment)))).parse(input);
    let comma = || delimited(blank, char(','), blank);
    let items = terminated(
        separated_list0(comma(), atom),
        nom::combinator::opt(comma()),
    );
    let inside = delimited(blank, items, blank);
    map(delimited(char('['), inside, cut(char(']'))), Value::List).parse(input)
}

fn atom(input: &str) -> IResult<&str, String> {
    let number = take_while1(|c: char| c.is_ascii_alphanumeric());
    let number = verify(number, |text: &str| {
        text.starts_with(|c: char| c.is_ascii_digit())
    });
    alt((quoted('"'), quoted('\''), map(number, str::to_owned))).parse(input)
}

/// Text in quotes, on one line; a backslash stands before what means something else there.
fn quoted<'a>(
    quote: char,
) -> impl Parser<&'a str, Output = String, Error = nom::error::Error<&'a str>> {
    let plain = map(
        verify(
            take_while(move |c: char| c != quote && c != '\\' && c != '\n'),
            |text: &str| !text.is_empty(),
        ),
        str::to_owned,
    );
    let escaped = alt((
        value('\n', char('n')),
        value('\t', char('t')),
        one_of("\\\"'"),
    ));
    let escaped = map(preceded(char('\\'), cut(escaped)), String::from);
    let parts = map(many0(alt((plain, escaped))), |parts| parts.concat());
    delimited(char(quote), parts, cut(char(quote)))
}

fn comment(input: &str) -> IResult<&str, &str> {
    preceded(char('#'), not_line_ending).parse(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(vdev: &str, take: Option<Take>, file: Option<&str>) -> DiskChoice {
        DiskChoice {
            vdev: vdev.into(),
            take,
            file: file.map(PathBuf::from),
        }
    }

    #[test]
    fn every_setting_is_read() {
        let text = "# a snapshot\n\
            name = \"before\" ; description='it\\'s \"new\"'  # words\n\
            memory=\"/var/m\"\n\ttype = \"external\"\r\n\
            disks = [ '/tmp/a,b.qcow2,qcow2,hda', # one\n  ',,hdb',\n 'xvdc,snapshot=no', 'xvdd' , ]";
        let file = understand(text).unwrap();
        assert_eq!(file.name.unwrap().as_str(), "before");
        assert_eq!(file.description.unwrap(), "it's \"new\"");
        assert_eq!(file.memory, Some(Memory::File("/var/m".into())));
        assert_eq!(file.kind, Some(DiskKind::External));
        let as_kind = |kind| Some(Take::As(kind));
        assert_eq!(
            file.disks,
            [
                disk("hda", as_kind(DiskKind::External), Some("/tmp/a,b.qcow2")),
                disk("hdb", as_kind(DiskKind::Internal), None),
                disk("xvdc", Some(Take::No), None),
                disk("xvdd", None, None),
            ]
        );
        for (text, memory) in [("memory=\"yes\"", Memory::Yes), ("memory='no'", Memory::No)] {
            assert_eq!(understand(text).unwrap().memory, Some(memory));
        }
        assert_eq!(understand("").unwrap(), SnapshotFile::default());
        assert_eq!(understand("disks=[]\n").unwrap().disks, []);
    }

    #[test]
    fn what_is_not_understood_is_told_with_its_line() {
        for (text, line, word) in [
            ("name = \"a\"\nnonsense", 2, "ends too early"),
            ("\n\nname \"a\"", 3, "\"a"),
            ("name = \"a\" memory = \"no\"", 1, "memory"),
            ("name = \"a", 1, "too early"),
            ("name = \"a\n\"", 1, ""),
            ("name = \"a\\q\"", 1, "q"),
            ("name = a", 1, "a"),
            ("disks = [\n',,a',\n}", 3, "}"),
            ("disks = [ ',,a'", 1, "too early"),
            ("name=\"../x\"", 1, ""),
            ("name=\"a\"\nname=\"b\"", 2, "twice"),
            ("name=[]", 1, "no list"),
            ("disks=\"a\"", 1, "brackets"),
            ("memory=\"maybe\"", 1, "memory is"),
            ("memory=1", 1, "memory is"),
            ("type=\"both\"", 1, "type is"),
            ("on_crash=\"destroy\"", 1, "none of"),
            ("disks=['a,raw,hda']", 1, "qcow2"),
            ("disks=[',raw,hda']", 1, "no path"),
            ("disks=['a,qcow2,']", 1, "no disk"),
            ("disks=['xvda,snapshot=maybe']", 1, "maybe"),
            ("= 5", 1, "="),
            ("\u{0}", 1, ""),
        ] {
            let why = understand(text).unwrap_err();
            assert!(
                why.starts_with(&format!("line {line}")) && why.contains(word),
                "{text:?}: {why}"
            );
        }
    }

    #[test]
    fn a_file_that_is_none_or_too_long_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.cfg");
        let report = |path: &Path| read(path).unwrap_err().report();
        assert!(report(&path).contains("s.cfg"));
        assert!(report(directory.path()).contains("no file"));
        assert!(report(Path::new("/dev/zero")).contains("no file"));
        let length = usize::try_from(FILE_MAX).unwrap();
        std::fs::write(&path, "#".repeat(length)).unwrap();
        assert_eq!(read(&path).unwrap(), SnapshotFile::default());
        std::fs::write(&path, "#".repeat(length + 1)).unwrap();
        assert!(report(&path).contains("longer"));
        std::fs::write(&path, b"name=\"\xff\"").unwrap();
        assert!(report(&path).contains("UTF-8"));
        // Deep or endless nesting costs nothing: there is none.
        std::fs::write(&path, "[".repeat(length)).unwrap();
        assert!(report(&path).contains("line 1"));
        std::fs::write(&path, format!("disks={}", "[".repeat(1000))).unwrap();
        assert!(report(&path).contains("line 1"));
    }
}
