//! The image below another one, by that one's own account. A guest does not reach what a qcow2 image says there; an image
//! of the user's own is taken at its word, as QEMU does when it opens it, but for a format that is not said.

use crate::error::{Error, ErrorKind, Result};
use crate::model::disk::{ImageFacts, ImageFormat};
use crate::model::layer::Backing;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// No chain of images is longer; a circle ends here.
pub(crate) const DEPTH_MAX: usize = 512;

/// What an image says that it stands on; none for nothing. A name without a directory is one beside the image.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for what is no file, or of a format that is not said or not known.
pub(crate) fn below(image: &Path, facts: &ImageFacts) -> Result<Option<Backing>> {
    let Some(name) = &facts.backing else {
        return Ok(None);
    };
    let refuse = |why: &str| {
        Error::new(
            ErrorKind::Unsupported,
            format!(
                "{} stands on '{}', {why}",
                image.display(),
                name.to_string_lossy()
            ),
        )
    };
    if is_url(name) {
        return Err(refuse("which is no file"));
    }
    let path: PathBuf = image.parent().unwrap_or(Path::new("/")).join(name);
    let format = match facts.backing_format.as_deref() {
        Some(format) => ImageFormat::of(format)
            .ok_or_else(|| refuse(&format!("a {format} image; only qcow2 and raw are known")))?,
        None => {
            return Err(refuse("and does not say of which format that is").hint(format!(
                "a format is never guessed, since a guest can make a raw disk look like another image; while nobody uses \
                 them, `qemu-img rebase -u -f qcow2 -F FORMAT -b {} {}` says it",
                name.to_string_lossy(),
                image.display()
            )));
        }
    };
    Ok(Some(Backing {
        image: path.into(),
        format,
    }))
}

/// Adds an image and all below it, down to the bottom, to those that were found. What `facts` does not know of ends the way,
/// and what was found until then stays.
///
/// # Errors
/// What `facts` and [`below`] say; [`ErrorKind::Corrupt`] for images that stand on each other in a circle.
pub(crate) fn follow(
    disk: &Backing,
    mut facts: impl FnMut(&Backing) -> Result<ImageFacts>,
    found: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let mut next = Some(disk.clone());
    for _ in 0..=DEPTH_MAX {
        let Some(at) = next else { return Ok(()) };
        found.insert(at.image.to_path_buf());
        // A raw image stands on nothing, whatever its guest wrote to its beginning.
        next = match at.format {
            ImageFormat::Qcow2 => below(&at.image, &facts(&at)?)?,
            ImageFormat::Raw => None,
        };
    }
    let image = disk.image.display();
    Err(Error::new(
        ErrorKind::Corrupt,
        format!("the images of {image} stand on each other in a circle"),
    ))
}

/// Whether QEMU takes a name for that of something else than a file: `json:`, or a protocol in front of a colon.
fn is_url(name: &Path) -> bool {
    let name = name.as_os_str().as_encoded_bytes();
    let colon = name.iter().position(|byte| *byte == b':');
    colon.is_some_and(|colon| !name[..colon].contains(&b'/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::disk::Stamp;

    #[test]
    fn only_files_of_known_formats_are_followed() {
        let says = |name: &str, format: Option<&str>| ImageFacts {
            virtual_size: 0,
            allocated: 0,
            written: Stamp {
                seconds: 0,
                nanoseconds: 0,
            },
            is_device: false,
            retired: false,
            backing: Some(name.into()),
            backing_format: format.map(Into::into),
            snapshots: Vec::new(),
        };
        let own = Path::new("/i/top");
        let found = |name, format| below(own, &says(name, format));
        let path = |name| found(name, Some("raw")).unwrap().unwrap().image;
        assert_eq!(&*path("base"), Path::new("/i/base"));
        assert_eq!(&*path("../j/a:b"), Path::new("/i/../j/a:b"));
        assert_eq!(&*path("/j/base"), Path::new("/j/base"));
        for (name, format) in [
            ("base", None),
            ("base", Some("vmdk")),
            ("json:{\"driver\":\"raw\"}", Some("raw")),
            ("nbd:localhost:1", Some("raw")),
            ("fat:rw:/etc", Some("raw")),
        ] {
            assert_eq!(
                found(name, format).unwrap_err().kind(),
                ErrorKind::Unsupported,
                "{name}"
            );
        }
        let alone = ImageFacts {
            backing: None,
            ..says("", None)
        };
        assert_eq!(below(own, &alone).unwrap(), None);
    }
}
