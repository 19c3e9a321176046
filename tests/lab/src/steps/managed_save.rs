//! Saved domains: what is kept, who goes on from it, and when nobody may.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::faults::{self, die_at};
use super::small_store::SmallStore;
use super::snapshot::{DISKS, State, two_disks};
use super::snapshot_life::is_paused;
use crate::guest::{Guest, GuestSpec, Kind};
use crate::host::Lab;
use crate::product::Product;
use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-managed-save-pvh-goes-on",
        run: |context| expensive(context, "savedpvh", Kind::Pvh),
        cells: &[],
    },
    Step {
        name: "ts-managed-save-hvm-goes-on",
        run: |context| expensive(context, "savedhvm", Kind::Hvm),
        cells: &[],
    },
    Step {
        name: "ts-managed-save-goes-on",
        run: pv,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-goes-on-from-a-configuration-file",
        run: from_a_file,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-started-by-stock-xl",
        run: started_by_stock_xl,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-damaged",
        run: damaged,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-interrupted-killed-and-full-disk",
        run: interrupted,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-of-all",
        run: of_all,
        cells: &[],
    },
    Step {
        name: "ts-managed-save-fault-points",
        run: fault_points,
        cells: &[],
    },
];

/// Long enough for a save and a restore on a loaded machine.
const LIMIT: Duration = Duration::from_secs(300);

/// What `managed-save-status` says: its exit status.
pub(super) fn status(product: &Product<'_>) -> Result<i32> {
    let output = product.try_run("managed-save-status {}")?;
    let silent = output.stdout.is_empty() && output.stderr.is_empty();
    ensure!(
        (output.status == 1) == silent,
        "it ended with {}: {}{}",
        output.status,
        output.stdout,
        output.stderr
    );
    Ok(output.status)
}

/// The guest goes on with its memory and its disks.
fn ensure_goes_on(guest: &Guest<'_>, state: &State, counter: u64) -> Result<()> {
    assert_eq!(&State::read(guest)?, state);
    guest.wait_counter_beyond(counter).map(drop)
}

fn expensive(context: &mut Context, name: &str, kind: Kind) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv(name).kind(kind).disks(&[32, 32]))?;
    goes_on(lab, &guest)
}

fn pv(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "saved")?;
    goes_on(lab, &guest)?;
    how_it_goes_on(lab, &guest, &product)?;
    // xl acts on what it does, as for every domain that xl started.
    guest.poweroff()?;
    assert_eq!(status(&product)?, 1);
    product.ensure_nothing_left(&guest, &DISKS)
}

/// Saved, and gone on with.
fn goes_on(lab: &Lab, guest: &Guest<'_>) -> Result<()> {
    let product = Product::of(lab, guest);
    assert_eq!(status(&product)?, 1, "before anything is kept");
    let state = State::set(guest, "before")?;
    let counter = guest.counter()?;
    product.run("managed-save {}")?;
    guest.wait_gone()?;
    assert_eq!(status(&product)?, 0);
    let list = product.run("managed-save-list")?;
    ensure!(
        list.contains(guest.name()) && list.contains("good"),
        "{list}"
    );
    let modes = lab.run(&format!(
        "find {} -type f ! -perm 600 -o -type d ! -perm 700",
        product.store_dir()
    ))?;
    assert_eq!(modes, "", "files that others may read");
    product.refuses("managed-save {}", &["is not running", "xl-ext start"])?;
    product.refuses("snapshot-create {} -n x", &["was saved"])?;
    product.run("start {}")?;
    ensure_goes_on(guest, &state, counter)?;
    assert_eq!(status(&product)?, 1);
    product.refuses("start {}", &["was not saved", "it is running"])?;
    product.refuses("managed-save-remove {}", &["was not saved"])?;
    product.ensure_nothing_left(guest, &DISKS)
}

fn how_it_goes_on(lab: &Lab, guest: &Guest<'_>, product: &Product<'_>) -> Result<()> {
    let state = State::set(guest, "flags")?;
    product.run("managed-save --paused {}")?;
    product.run("start {}")?;
    ensure!(is_paused(lab, guest)?, "it was to go on paused");
    product.run("managed-save {}")?;
    product.run("start --running {}")?;
    ensure!(!is_paused(lab, guest)?, "it was to run");
    lab.run(&format!("xl pause {}", guest.name()))?;
    product.run("managed-save --running {}")?;
    product.run("start {}")?;
    ensure!(!is_paused(lab, guest)?, "it was to run");
    ensure_goes_on(guest, &state, guest.counter()?)
}

/// As `xl create` by our program, and by `start`; and afresh, where nothing was saved or it is not wanted.
fn from_a_file(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "file")?;
    let (config, bin) = (
        format!("{}/guest.cfg", guest.dir()),
        format!("{}/bin", guest.dir()),
    );
    lab.run(&format!(
        "mkdir {bin} && ln -s $(command -v xl-ext) {bin}/xl"
    ))?;
    let as_xl = |arguments: &str| {
        let store = product.store_dir();
        lab.run_within(
            &format!("PATH={bin}:$PATH XL_EXT_STORE={store} xl {arguments}"),
            LIMIT,
        )
    };
    let state = State::set(&guest, "file")?;
    let counter = guest.counter()?;
    as_xl(&format!("managed-save {}", guest.name()))?;
    let plan = as_xl(&format!("-N create {config}"))?;
    ensure!(
        plan.contains("make a domain") || plan.contains("restore"),
        "{plan}"
    );
    ensure!(!guest.exists(), "a dry run started it");
    as_xl(&format!("create -p {config}"))?;
    ensure!(is_paused(lab, &guest)?, "-p was not heeded");
    lab.run(&format!("xl unpause {}", guest.name()))?;
    ensure_goes_on(&guest, &state, counter)?;
    assert_eq!(status(&product)?, 1);

    product.run("managed-save {}")?;
    product.run(&format!("start {config}"))?;
    ensure_goes_on(&guest, &state, counter)?;
    product.refuses(&format!("start {config}"), &["is there already"])?;

    product.run("managed-save {}")?;
    product.refuses("start --fresh {}", &["configuration file"])?;
    product.run(&format!("start --fresh {config}"))?;
    guest.wait_ready()?;
    let life = guest.life_id()?;
    ensure!(State::read(&guest).is_err(), "the word outlived its memory");
    assert_eq!(status(&product)?, 1);
    guest.destroy()?;
    product.run(&format!("start {config}"))?;
    guest.wait_ready()?;
    ensure!(guest.life_id()? != life, "it did not boot");
    product.ensure_nothing_left(&guest, &DISKS)
}

/// Behind our back: never gone back over what was written since.
fn started_by_stock_xl(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "behind")?;
    let config = format!("{}/guest.cfg", guest.dir());
    State::change(&guest, "before")?;
    product.run("managed-save {}")?;
    // Nobody of ours looks while it runs.
    lab.run(&format!("xl create {config}"))?;
    guest.wait_ready()?;
    State::change(&guest, "since")?;
    guest.destroy()?;
    product.refuses(
        "start {}",
        &["was written to since", "managed-save-remove", "--fresh"],
    )?;
    lab.run(&format!("xl create {config}"))?;
    guest.wait_ready()?;
    product.refuses("start {}", &["already", "managed-save-remove"])?;
    let list = product.run("managed-save-status {}")?;
    ensure!(list.contains("already"), "{list}");
    guest.destroy()?;
    product.refuses("start {}", &["it ran after that", "--fresh"])?;
    product.run(&format!("start --fresh {config}"))?;
    guest.wait_ready()?;
    assert_eq!(status(&product)?, 1);
    // While it runs it can be removed too, and saving again takes the place of what is void.
    product.run("managed-save {}")?;
    lab.run(&format!("xl create {config}"))?;
    guest.wait_ready()?;
    let state = State::set(&guest, "again")?;
    product.run("managed-save {}")?;
    product.run("start {}")?;
    assert_eq!(State::read(&guest)?, state);
    // The file is xl's, and what was saved is void once it was restored.
    product.run("managed-save {}")?;
    let file = format!("{}/exported", guest.dir());
    product.run(&format!("managed-save-export {{}} {file}"))?;
    lab.run(&format!("xl restore {file} && rm {file}"))?;
    guest.wait_ready()?;
    assert_eq!(State::read(&guest)?, state);
    product.refuses("managed-save-export {} /root/x", &["already"])?;
    guest.destroy()?;
    product.refuses("start {}", &["it ran after that"])?;
    lab.run(&format!("xl create {config}"))?;
    product.run("managed-save-remove {}")?;
    assert_eq!(status(&product)?, 1);
    product.ensure_nothing_left(&guest, &DISKS)
}

/// Each damage is told, and removed.
fn damaged(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "damaged")?;
    let config = format!("{}/guest.cfg", guest.dir());
    let store = format!("{}/{}", product.store_dir(), guest.name());
    for (damage, told) in [
        (
            "printf damage | dd of=$(echo $store/packs/*) bs=1 seek=1000000 conv=notrunc status=none",
            "start of",
        ),
        ("truncate -s 1K $image", "bytes now"),
        ("rm $image", "missing"),
        (
            "printf x | dd of=$store/domain bs=1 seek=60 conv=notrunc status=none",
            "damaged",
        ),
    ] {
        product.run("managed-save {}")?;
        lab.run(&format!(
            "store={store}; image=$(echo $store/*/memory); {damage}"
        ))?;
        product.refuses("start {}", &[told])?;
        ensure!(!guest.exists(), "it was started in spite of: {damage}");
        product.run("managed-save-remove {}")?;
        assert_eq!(status(&product)?, 1, "{damage}");
        product.run(&format!("start {config}"))?;
        guest.wait_ready()?;
    }
    // All in one, with the option.
    product.run("managed-save {}")?;
    lab.run(&format!("truncate -s 1K {store}/*/memory"))?;
    product.run(&format!("start --fresh {config}"))?;
    guest.wait_ready()?;
    assert_eq!(status(&product)?, 1);
    Ok(())
}

/// The guest goes on running, and nothing is left.
fn interrupted(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guest = Guest::create(lab, &GuestSpec::pv("unsaved").memory(256).disks(&[32, 32]))?;
    let product = Product::of(lab, &guest);
    let (life, domid) = (guest.life_id()?, guest.domid()?);
    let mut counter = guest.counter()?;
    let output = lab.try_run(
        &format!(
            "{} & pid=$!; while ! {}; do :; done; kill -INT -- -$pid; wait $pid",
            product
                .command("managed-save {}")
                .replacen("xl-ext", "setsid xl-ext", 1),
            product.memory_beyond(10)
        ),
        LIMIT,
    )?;
    assert_eq!(output.status, 1, "{}", output.stderr);
    ensure!(
        output.stderr.contains("are as they were"),
        "{}",
        output.stderr
    );
    counter = guest.wait_counter_beyond(counter)?;
    product.ensure_nothing_left(&guest, &DISKS)?;

    product.kill_when("managed-save {}", &product.memory_beyond(40))?;
    // The question, too, ends what was begun.
    assert_eq!(product.try_run("managed-save-status {}")?.status, 1);
    counter = guest.wait_counter_beyond(counter)?;
    product.wait_for_helpers()?;
    product.ensure_nothing_left(&guest, &DISKS)?;

    // What is neither zero nor made smaller: the room is taken away long before all of it is written.
    guest.ask_within("fill 60", 300)?;
    full_disk(lab, &guest)?;
    guest.wait_counter_beyond(counter)?;
    assert_eq!((guest.life_id()?, guest.domid()?), (life, domid));
    Ok(())
}

/// 290 MiB are enough for what 256 MiB of memory may take; once a part is written, the rest is taken away.
fn full_disk(lab: &Lab, guest: &Guest<'_>) -> Result<()> {
    let small_store = SmallStore::of(lab, 290)?;
    let product = Product::of(lab, guest).store(&small_store.dir());
    product.shrink_beyond(5, 1, small_store.mount)?;
    product.refuses(
        "managed-save {}",
        &["No space left on device", "are as they were"],
    )?;
    assert_eq!(status(&product)?, 1);
    // Too little from the start: refused before anything is done.
    product.refuses("managed-save {}", &["needs up to"])
}

/// One that fails does not stop the others.
fn of_all(context: &mut Context) -> Result<()> {
    context.needs_product()?;
    let lab = context.lab();
    let guests =
        ["all1", "all2", "all3"].map(|name| Guest::create(lab, &GuestSpec::pv(name).disks(&[16])));
    let [first, second, third] = guests;
    let (first, second, third) = (first?, second?, third?);
    let product = Product::of(lab, &first);
    let lives = [first.life_id()?, second.life_id()?, third.life_id()?];
    let store = product.store_dir();
    // Somebody is at work on the second.
    lab.run(&format!(
        "mkdir -p -m 700 {store}/all2 && touch {store}/all2/lock && chmod 600 {store}/all2/lock && \
         (flock {store}/all2/lock sleep 600 >/dev/null 2>&1 & echo $! > {store}.pid)"
    ))?;
    product.refuses("managed-save --all", &["all2", "1 of 3 domains failed"])?;
    ensure!(
        !first.exists() && second.exists() && !third.exists(),
        "the wrong ones are off"
    );
    lab.run(&format!(
        "pkill -P $(cat {store}.pid); kill $(cat {store}.pid) || true"
    ))?;
    product.run("managed-save --all")?;
    let list = product.run("managed-save-list --json")?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    assert_eq!(list.as_array().map(Vec::len), Some(3), "{list}");
    for (guest, life) in [first, second, third].iter().zip(lives) {
        product.run(&format!("start {}", guest.name()))?;
        assert_eq!(guest.life_id()?, life);
    }
    let list = product.run("managed-save-list")?;
    assert_eq!(list, "");
    Ok(())
}

/// On both sides of the instant at which the guest may first run, and of the one at which it is recorded as saved.
fn fault_points(context: &mut Context) -> Result<()> {
    context.is_expensive()?;
    context.needs_product()?;
    faults::install(context)?;
    let lab = context.lab();
    let (guest, product) = two_disks(lab, "points")?;
    let state = State::set(&guest, "points")?;
    for (point, is_saved) in [
        ("do-2-save-memory-performed", false),
        ("do-4-destroy-performed", false),
        ("do-6-stamp-images-performed", false),
        ("do-7-commit-begun", false),
        ("do-7-commit-performed", true),
    ] {
        die_at(lab, &product, "managed-save {}", point)?;
        let found = product.try_run("managed-save-status {}")?.status;
        assert_eq!(found, i32::from(!is_saved), "{point}");
        if is_saved {
            product.run("start {}")?;
        }
        assert_eq!(State::read(&guest)?, state, "{point}");
    }
    for (point, runs) in [
        ("do-2-restore-performed", false),
        ("do-3-start-next", false),
        ("do-3-start-begun", true),
        ("do-3-start-performed", true),
        ("do-4-commit-begun", true),
        ("do-4-commit-performed", true),
        ("do-5-remove-directory-performed", true),
    ] {
        product.run("managed-save {}")?;
        die_at(lab, &product, "start {}", point)?;
        let found = product.try_run("managed-save-status {}")?.status;
        assert_eq!((found, guest.exists()), (i32::from(runs), runs), "{point}");
        if !runs {
            product.run("start {}")?;
        }
        assert_eq!(State::read(&guest)?, state, "{point}");
        product.ensure_nothing_left(&guest, &DISKS)?;
    }
    Ok(())
}
