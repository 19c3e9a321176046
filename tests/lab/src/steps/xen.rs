//! The host itself: what every other step relies on.

use anyhow::{Result, ensure};

use crate::step::{Context, Step};

pub(super) const STEPS: &[Step] = &[
    Step {
        name: "ts-xen-boots",
        run: xen_boots,
        cells: &[],
    },
    Step {
        name: "ts-userland-self-test",
        run: userland_self_test,
        cells: &[],
    },
    Step {
        name: "ts-dom0-without-dev-packages",
        run: dom0_without_dev_packages,
        cells: &[],
    },
];

fn xen_boots(context: &mut Context) -> Result<()> {
    let info = context.lab().run("xl info")?;
    let field = |name: &str| {
        info.lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(key, _)| key.trim() == name)
            .map(|(_, value)| value.trim().to_owned())
    };
    assert_eq!(field("xen_major").as_deref(), Some("4"));
    assert_eq!(field("xen_minor").as_deref(), Some("17"));
    let list = context.lab().run("xl list")?;
    ensure!(
        list.lines().count() == 2 && list.contains("Domain-0"),
        "not only dom0:\n{list}"
    );
    Ok(())
}

fn userland_self_test(context: &mut Context) -> Result<()> {
    // Each boot ends with a shorter one.
    context.is_expensive()?;
    context.lab().self_test()
}

/// The product must work where only Xen's run-time packages are.
fn dom0_without_dev_packages(context: &mut Context) -> Result<()> {
    let found = context
        .lab()
        .run("dpkg-query -W -f '${Package}\\n' | grep -e '-dev$' || true")?;
    ensure!(found.is_empty(), "dom0 has {found}");
    Ok(())
}
