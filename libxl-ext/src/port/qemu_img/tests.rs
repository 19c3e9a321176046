//! With the real `qemu-img`.

use super::*;
use std::process::Stdio;

fn disk(image: &Path) -> DiskTarget {
    DiskTarget {
        vdev: "xvda".into(),
        image: image.into(),
        format: ImageFormat::Qcow2,
    }
}

fn make(path: &Path) {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg("8M")
        .stdin(Stdio::null())
        .status()
        .expect("qemu-img is installed (package qemu-utils)");
    assert!(status.success());
}

#[test]
fn a_snapshot_is_made_found_and_deleted_also_where_the_name_has_commas() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a,driver=raw,b.qcow2");
    make(&path);
    let disk = disk(&path);
    QemuImg.create_snapshot(&disk, "xl-ext-1").unwrap();
    let facts = QemuImg.facts(&path, ImageFormat::Qcow2).unwrap().unwrap();
    assert_eq!(facts.virtual_size, 8 << 20);
    assert!(facts.snapshot("xl-ext-1").unwrap().stamp.seconds > 0);
    QemuImg.apply_snapshot(&disk, "xl-ext-1").unwrap();
    QemuImg.delete_snapshot(&disk, "xl-ext-1").unwrap();
    QemuImg.delete_snapshot(&disk, "xl-ext-1").unwrap();
    assert!(
        QemuImg
            .facts(&path, ImageFormat::Qcow2)
            .unwrap()
            .unwrap()
            .snapshots
            .is_empty()
    );
}

/// The state between QEMU's counting of the clusters for an internal snapshot and its entry in the header.
#[test]
fn what_a_power_cut_left_counted_is_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("a.qcow2");
    let text = image.to_str().unwrap().to_owned();
    let run = |program: &str, words: &[&str]| {
        let output = std::process::Command::new(program).args(words).output();
        output.unwrap().status.code()
    };
    run("qemu-img", &["create", "-q", "-f", "qcow2", &text, "8M"]);
    let write = "write -q -P 1 0 1M";
    assert_eq!(
        run("qemu-io", &["-f", "qcow2", "-c", write, &text]),
        Some(0)
    );
    let before = std::fs::read(&image).unwrap();
    let disk = DiskTarget {
        vdev: "xvda".into(),
        image: image.as_path().into(),
        format: ImageFormat::Qcow2,
    };
    QemuImg.create_snapshot(&disk, "xl-ext-1").unwrap();
    // Number and place of the snapshots, and the tables of the clusters, are as they were.
    let mut cut = std::fs::read(&image).unwrap();
    let number = |at: usize| {
        let bytes = before[at..at + 8].try_into().unwrap();
        usize::try_from(u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00).unwrap()
    };
    let level_1 = number(40);
    let level_2 = number(level_1);
    for part in [60..72, level_1..level_1 + 8, level_2..level_2 + (64 << 10)] {
        cut[part.clone()].copy_from_slice(&before[part]);
    }
    std::fs::write(&image, &cut).unwrap();
    let check = ["check", "-q", "-f", "qcow2", &text];
    assert_eq!(run("qemu-img", &check), Some(2), "it is damaged");
    QemuImg.release_leaks(&disk).unwrap();
    assert_eq!(run("qemu-img", &check), Some(0));
    let read = "read -q -P 1 0 1M";
    assert_eq!(run("qemu-io", &["-f", "qcow2", "-c", read, &text]), Some(0));
    QemuImg.release_leaks(&disk).unwrap();
}

#[test]
fn a_file_of_another_format_is_refused_and_a_missing_one_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let raw = directory.path().join("raw");
    std::fs::write(&raw, vec![0; 1 << 20]).unwrap();
    assert!(QemuImg.facts(&raw, ImageFormat::Qcow2).is_err());
    assert_eq!(
        QemuImg
            .facts(&directory.path().join("none"), ImageFormat::Qcow2)
            .unwrap(),
        None
    );
}

fn run(program: &str, words: &[&str]) -> Option<i32> {
    let output = Command::new(program).args(words).output();
    output.unwrap().status.code()
}

/// What the guest has at 0, 1, 2, ... MiB, as bytes of which each MiB is full.
fn mebibytes(image: &Path) -> Vec<u8> {
    let raw = image.with_extension("content");
    let words = ["convert", "-f", "qcow2", "-O", "raw"].map(OsString::from);
    let images = [image, &raw].map(|path| path.as_os_str().to_owned());
    qemu_img(words.into_iter().chain(images), "read").unwrap();
    let content = std::fs::read(raw).unwrap();
    let whole = content.chunks(1 << 20).map(|mebibyte| {
        assert!(mebibyte.iter().all(|byte| *byte == mebibyte[0]));
        mebibyte[0]
    });
    whole.collect()
}

fn fill(image: &Path, format: &str, at: usize, byte: u8) {
    let write = format!("write -q -P {byte} {at}M 1M");
    let image = image.to_str().unwrap();
    assert_eq!(
        run("qemu-io", &["-f", format, "-c", &write, image]),
        Some(0)
    );
}

/// A state inside a layer has some of its content from the image below, and some from nowhere. Where the layer was
/// written to since, neither is what the layer has now.
#[test]
fn a_state_that_is_copied_out_of_a_layer_has_what_it_had_from_below() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    for below in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let base = path(&format!("base.{}", below.driver()));
        let size = [
            "create",
            "-q",
            "-f",
            below.driver(),
            base.to_str().unwrap(),
            "5M",
        ];
        assert_eq!(run("qemu-img", &size), Some(0));
        fill(&base, below.driver(), 0, 1);
        fill(&base, below.driver(), 1, 1);
        let layer = |image: &str, on: &Path, format| Layer {
            vdev: "xvda".into(),
            below_written: None,
            image: path(&format!("{image}.{}", below.driver())).into(),
            backing: Some(Backing {
                image: on.into(),
                format,
            }),
            base: Backing {
                image: base.as_path().into(),
                format: below,
            },
            active: false,
            merging: None,
        };
        let lower = layer("lower", &base, below);
        QemuImg.create_layer(&lower).unwrap();
        fill(&lower.image, "qcow2", 1, 2);
        fill(&lower.image, "qcow2", 2, 2);
        QemuImg.create_snapshot(&disk(&lower.image), "tag").unwrap();
        for at in [0, 2, 3] {
            fill(&lower.image, "qcow2", at, 3);
        }
        let copy = layer("copy", &lower.image, ImageFormat::Qcow2);
        QemuImg.extract(&disk(&lower.image), "tag", &copy).unwrap();
        assert_eq!(mebibytes(&copy.image), [1, 2, 2, 0, 0]);
        assert_eq!(mebibytes(&lower.image), [3, 2, 3, 3, 0]);
        // It can go back into the image that it was copied out of.
        QemuImg.commit_layer(&copy).unwrap();
        assert_eq!(mebibytes(&lower.image), [1, 2, 2, 0, 0]);
    }
}

#[test]
fn which_image_holds_what_is_seen_by_the_chain_that_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let (top, base) = (path("a,b.qcow2"), path("base"));
    for image in [&top, &base] {
        make(image);
    }
    fill(&base, "qcow2", 1, 1);
    let chain = [&top, &base].map(|image| Backing {
        image: image.as_path().into(),
        format: ImageFormat::Qcow2,
    });
    let depths = |chain: &[Backing]| -> Vec<_> {
        let extents = QemuImg.extents(chain).unwrap();
        let end = extents.last().map(|it| it.start + it.length);
        assert_eq!(end, Some(8 << 20));
        let held = extents.into_iter().filter(|it| it.present);
        held.map(|it| it.depth).collect()
    };
    assert_eq!(depths(&chain), [1]);
    fill(&top, "qcow2", 1, 1);
    assert_eq!(depths(&chain), [0]);
    let extents = |text: &str| extents_in(text.as_bytes());
    for gap in [
        r#"[{"start":1,"length":1,"depth":0,"zero":true}]"#,
        r#"[{"start":0,"length":0,"depth":0,"zero":true}]"#,
        r#"[{"start":0,"length":1,"depth":-1,"zero":true}]"#,
        "[",
    ] {
        assert!(extents(gap).is_err(), "{gap}");
    }
}

/// What QEMU says of an image.
fn said(image: &Path, format: ImageFormat) -> ImageFacts {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "-f", format.driver()])
        .arg(image)
        .output()
        .unwrap();
    ImageFacts {
        written: last_write(image),
        ..facts_in(&output.stdout).unwrap()
    }
}

fn qemu_img_does(words: &[&str]) {
    let status = Command::new("qemu-img").args(words).status().unwrap();
    assert!(status.success(), "{words:?}");
}

#[test]
fn what_is_seen_at_a_glance_is_what_qemu_says() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let text = |name: &str| path(name).to_str().unwrap().to_owned();
    std::fs::write(path("raw"), vec![1; 5000]).unwrap();
    let images: &[(&str, &[&str])] = &[
        ("plain", &["8M"]),
        ("old", &["-o", "compat=0.10", "8M"]),
        ("small-clusters", &["-o", "cluster_size=512", "3M"]),
        ("large-clusters", &["-o", "cluster_size=2M", "3M"]),
        ("extended", &["-o", "extended_l2=on", "8M"]),
        ("zstd", &["-o", "compression_type=zstd", "8M"]),
        ("empty", &["0"]),
        ("on-raw", &["-F", "raw", "-b", &text("raw")]),
        ("on-qcow2", &["-F", "qcow2", "-b", &text("plain"), "16M"]),
        ("relative", &["-F", "qcow2", "-b", "plain"]),
        (
            "old-on-qcow2",
            &["-o", "compat=0.10", "-F", "qcow2", "-b", &text("plain")],
        ),
    ];
    for (name, words) in images {
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        let image = text(name);
        // The length comes after the name.
        let (length, options) = match words.split_last() {
            Some((last, options)) if last.starts_with(|it: char| it.is_ascii_digit()) => {
                (Some(last), options)
            }
            _ => (None, *words),
        };
        all.extend(options);
        all.push(&image);
        all.extend(length);
        qemu_img_does(&all);
        for tag in ["", "one", "another, with a longer name: é"] {
            if !tag.is_empty() && *name != "empty" {
                qemu_img_does(&["snapshot", "-c", tag, &image]);
            }
            let seen = glance::facts(&path(name), ImageFormat::Qcow2);
            assert_eq!(seen, Some(said(&path(name), ImageFormat::Qcow2)), "{name}");
        }
    }
    let raw = path("raw");
    let seen = glance::facts(&raw, ImageFormat::Raw);
    assert_eq!(seen, Some(said(&raw, ImageFormat::Raw)));
    assert_eq!(seen.unwrap().virtual_size, 5120);
}

#[test]
fn what_is_out_of_the_ordinary_is_left_to_qemu() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("a.qcow2");
    make(&image);
    qemu_img_does(&["snapshot", "-c", "one", image.to_str().unwrap()]);
    let good = std::fs::read(&image).unwrap();
    let seen = || glance::facts(&image, ImageFormat::Qcow2);
    assert!(seen().is_some());
    let name = good.windows(3).position(|bytes| bytes == b"one").unwrap();
    let broken: &[(&str, usize, &[u8])] = &[
        ("another magic", 0, b"QED"),
        ("a version to come", 4, &[0, 0, 0, 4]),
        ("clusters of an odd size", 20, &[0, 0, 0, 40]),
        ("longer than its tables", 24, &[0xff]),
        ("encrypted", 32, &[0, 0, 0, 1]),
        ("tables beyond the end", 40, &[0x7f]),
        ("more snapshots than there can be", 60, &[0xff]),
        ("snapshots beyond the end", 64, &[0x7f]),
        ("data elsewhere", 79, &[4]),
        ("a header of no length", 100, &[0, 0, 0, 8]),
        ("a name of a snapshot that is no text", name, &[0xff]),
    ];
    for (what, at, bytes) in broken {
        let mut bad = good.clone();
        bad[*at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&image, &bad).unwrap();
        assert_eq!(seen(), None, "{what}");
    }
    for length in [0, 1, 71, 103] {
        std::fs::write(&image, &good[..length]).unwrap();
        assert_eq!(seen(), None, "{length} bytes");
    }
    assert_eq!(glance::facts(directory.path(), ImageFormat::Raw), None);
    std::fs::write(&image, &good).unwrap();
    assert!(seen().is_some());
}
