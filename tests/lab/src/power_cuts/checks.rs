//! What is looked at after a cut.

use std::fmt;

use anyhow::{Result, bail, ensure};

use super::model::{Action, Model};
use super::{DISKS, LIMIT, product, start_guest};
use crate::guest::{LIVED, mebibytes_sum};
use crate::host::Lab;
use crate::random::Random;
use crate::ssh::quote;

/// What the next command said that it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    TakenBack,
    Finished,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Nothing => "nothing",
            Self::TakenBack => "taken back",
            Self::Finished => "finished",
        })
    }
}

/// Has the next command end what was interrupted, and checks that all is as before it or as after it. The model is
/// right again afterwards, and the guest runs.
pub(super) fn after_cut(
    lab: &Lab,
    model: &mut Model,
    interrupted: Option<&Action>,
    random: &mut Random,
) -> Result<Found> {
    let before = model.clone();
    let mut after = model.clone();
    if let Some(action) = interrupted {
        after.apply(action);
    }
    let (guest, product) = product(lab);
    let output = product.try_run("snapshot-verify {}")?;
    ensure!(
        output.status == 0,
        "after {interrupted:?}, snapshot-verify ended with {}: {}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    let said = |words| output.stderr.contains(words);
    let found = match (said("was taken back"), said("was finished")) {
        (false, false) => Found::Nothing,
        (true, false) => Found::TakenBack,
        (false, true) => Found::Finished,
        (true, true) => bail!("{}", output.stderr),
    };
    let allowed: &[&Model] = match found {
        Found::Nothing => &[&before, &after],
        Found::TakenBack => &[&before],
        Found::Finished => &[&after],
    };
    nothing_unexplained(lab)?;

    let names = product.names()?;
    let is_back = guest.exists();
    if !is_back {
        images_are_whole(lab)?;
        start_guest(lab)?;
    }
    let (offset, mib) = LIVED;
    let sums = guest.sums(DISKS, offset, mib)?;
    let fits = |model: &&&Model| model.names() == names && sums == expected(model);
    let Some(&seen) = allowed.iter().find(fits) else {
        bail!(
            "after {interrupted:?} ({found:?}), the snapshots are {names:?} and the disks' sums {sums:?}; \
             before it: {before:?}, after it: {after:?}"
        );
    };
    if is_back {
        assert_eq!(guest.get_memory("word")?, seen.word, "the guest's memory");
    } else {
        // It was started anew.
        guest.set_memory("word", &seen.word)?;
    }
    let is_before = *seen == before;
    model.clone_from(seen);

    // The command can be given again.
    if let Some(command) = interrupted.filter(|_| is_before).and_then(Action::command) {
        product.run(&command)?;
        model.clone_from(&after);
    }
    // And what there is can be gone back to: the snapshot that was at work, or any.
    let concerned = match interrupted {
        Some(Action::Create { name, .. } | Action::Revert(name)) => Some(name),
        _ => None,
    };
    let names = model.names();
    if let Some(name) = concerned.or_else(|| random.choose(&names)) {
        let revert = Action::Revert(name.clone());
        product.run(&revert.command().unwrap_or_default())?;
        model.apply(&revert);
        assert_eq!(guest.get_memory("word")?, model.word, "{revert}, memory");
        assert_eq!(guest.sums(DISKS, offset, mib)?, expected(model), "{revert}");
    }
    nothing_unexplained(lab)?;
    Ok(found)
}

fn expected(model: &Model) -> [String; 2] {
    DISKS.map(|vdev| {
        let words = model.disks.iter().map(Option::as_ref);
        let patterns: Vec<_> = words
            .map(|word| word.map(|word| format!("{word}-{vdev}")))
            .collect();
        mebibytes_sum(patterns.iter().map(Option::as_deref))
    })
}

/// No cluster of an image is in doubt. Some may be held for nothing, which loses room and no data.
fn images_are_whole(lab: &Lab) -> Result<()> {
    let (guest, _) = product(lab);
    let output = lab.try_run(
        &format!(
            "for image in {}/*.qcow2; do qemu-img check -q -f qcow2 $image; status=$?; \
             case $status in 0|3) ;; *) echo $image: $status; exit 1; esac; done",
            quote(&guest.dir())
        ),
        LIMIT,
    )?;
    ensure!(output.status == 0, "{}{}", output.stdout, output.stderr);
    Ok(())
}

/// The record explains every file of ours: layers, internal snapshots, memory images; there are packs only where there are
/// memory images; no operation is in progress, and no file is half written.
fn nothing_unexplained(lab: &Lab) -> Result<()> {
    let (guest, product) = product(lab);
    let left = lab.run(&format!(
        r#"
dir={dir} store={store}
explained() {{ grep -qaF -- "$1" $store/*/domain || echo "$2 is not explained"; }}
for layer in $dir/*.xl-ext-*; do [ -e $layer ] && explained $layer $layer; done
for image in $dir/*.qcow2; do
	for tag in $(qemu-img info -U -f qcow2 $image | awk '$2 ~ /^xl-ext-/ {{ print $2 }}'); do
		explained ${{tag#xl-ext-}} "$tag in $image"
	done
done
for file in $(find $store -mindepth 2); do
	case $file in
	*/lock | */domain | */present | */memory | */snapshot) ;;
	*/packs) rmdir $file 2>/dev/null && echo "$file is empty" || true ;;
	# Whose it was may be deleted, while others need it.
	*/packs/????????-????-????-????-????????????) needed=$(find $store -name memory | wc -l); [ $needed -gt 0 ] || echo $file ;;
	*/????????-????-????-????-????????????) explained ${{file##*/}} $file ;;
	*) echo $file ;;
	esac
done
ps -eo stat=,args= | grep '^T' || true"#,
        dir = quote(&guest.dir()),
        store = quote(product.store_dir()),
    ))?;
    ensure!(left.is_empty(), "left over: {left}");
    Ok(())
}
