//! What the real `xl` makes of a configuration file: nobody else reads them as it does.

use super::real;
use libxl_ext::{Error, ErrorKind, Result};
use serde_json::Value;
use std::ffi::OsString;
use std::path::Path;

/// The configuration in libxl's JSON that a file stands for.
///
/// # Errors
/// If there is no such file, or `xl` refuses it.
pub(crate) fn of_file(file: &Path) -> Result<Value> {
    let what = || format!("read the configuration file {}", file.display());
    // An absolute path is no option.
    let path = file
        .canonicalize()
        .map_err(|error| Error::io(what(), error))?;
    let output = real::dry_run(&[OsString::from("-f"), path.into()])?;
    if output.status.success() {
        return read(&output.stdout).map_err(|error| error.while_doing(what()));
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    let complaint: Vec<_> = complaint.lines().map(str::trim).collect();
    Err(Error::new(ErrorKind::InvalidRequest, what())
        .because(format!("xl refuses it: {}", complaint.join("; "))))
}

/// The name of the domain that a configuration describes.
///
/// # Errors
/// If it has none.
pub(crate) fn name(configuration: &Value) -> Result<String> {
    let name = configuration["c_info"]["name"].as_str();
    name.map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::Toolstack,
            "`xl -N create` printed no name of a domain",
        )
    })
}

/// The configuration in what a dry run printed: a line for people may come before it. One that cannot be read
/// is an error, since nobody knows then which images the domain would write to.
pub(super) fn read(output: &[u8]) -> Result<Value> {
    let unreadable = |error: serde_json::Error| {
        Error::new(ErrorKind::Toolstack, "read what `xl -N create` printed").because(error)
    };
    let text = String::from_utf8_lossy(output);
    let json = match text.split_once('\n') {
        Some((line, rest)) if !line.trim_start().starts_with('{') => rest,
        _ => &text,
    };
    let mut values = serde_json::Deserializer::from_str(json).into_iter::<Value>();
    let mut printed = values.next().transpose().map_err(unreadable)?;
    // By itself, or with the number of a domain that there is not.
    let wrapped = printed
        .as_mut()
        .and_then(|printed| printed.get_mut("config"));
    let configuration = wrapped.map(Value::take).or(printed);
    configuration
        .filter(|configuration| configuration.get("c_info").is_some())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::Toolstack,
                "`xl -N create` printed no configuration",
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xl_would_do_is_read_behind_its_line_for_people_or_refused() {
        let config = r#"{"domid":null,"config":{"c_info":{"name":"g"},"disks":[]}}"#;
        for text in [
            config.to_owned(),
            r#"{"c_info":{"name":"g"}}"#.to_owned(),
            "Parsing config from g.cfg\n{\n\"c_info\": {\"name\": \"g\"}\n}\n".to_owned(),
            format!("Parsing config from /etc/{{x}}.cfg\n{config}\n"),
        ] {
            assert_eq!(name(&read(text.as_bytes()).unwrap()).unwrap(), "g");
        }
        for bad in [
            "",
            "Parsing config from g\n",
            "Parsing\n{\"domid\":5}",
            "{\"config\":5}",
            "[]",
            "{",
        ] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
        let nameless = read(br#"{"c_info":5}"#).unwrap();
        assert!(name(&nameless).is_err());
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let error = of_file(Path::new("/nowhere/g.cfg")).unwrap_err();
        assert!(error.report().contains("/nowhere/g.cfg"), "{error:?}");
    }
}
