//! What the guest holds and which snapshots there are, if all goes well.

use std::fmt;

use super::{DISKS, NAME, product};
use crate::guest::{LIVED, lived_on, places};
use crate::host::Lab;
use crate::random::Random;
use crate::ssh::quote;

/// The snapshot that is never deleted, so that the domain always has one.
const FIRST: &str = "first";

/// Beyond these, one is deleted before another is taken: each holds the guest's memory.
const SNAPSHOTS_MAX: usize = 4;

/// Something that is done with the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// It writes this word to its memory and to its disks, and flushes them.
    LiveOn(String),
    /// A snapshot is taken.
    Create {
        name: String,
        external: bool,
    },
    Revert(String),
    Delete(String),
}

/// The operations that are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Create,
    Revert,
    Delete,
}

/// The words that were written last to the mebibytes of [`LIVED`], on each disk alike.
pub(super) type Written = [Option<String>; LIVED.1 as usize];

/// A snapshot, and what the guest held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) word: String,
    disks: Written,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) snapshots: Vec<Taken>,
    /// The word that the guest's memory holds, if it was not started anew.
    pub(super) word: String,
    /// What its disks hold.
    pub(super) disks: Written,
    /// How many names and words were made up.
    counter: u32,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Create, Self::Revert, Self::Delete];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Revert => "revert",
            Self::Delete => "delete",
        }
    }
}

impl Action {
    pub(super) const fn kind(&self) -> Option<Kind> {
        match self {
            Self::LiveOn(_) => None,
            Self::Create { .. } => Some(Kind::Create),
            Self::Revert(_) => Some(Kind::Revert),
            Self::Delete(_) => Some(Kind::Delete),
        }
    }

    /// The product's command for it.
    pub(super) fn command(&self) -> Option<String> {
        match self {
            Self::LiveOn(_) => None,
            Self::Create { name, external } => {
                let how = if *external { "--external " } else { "" };
                Some(format!("snapshot-create {how}-n {name} {{}}"))
            }
            Self::Revert(name) => Some(format!("snapshot-revert {{}} {name}")),
            Self::Delete(name) => Some(format!("snapshot-delete {{}} {name}")),
        }
    }

    /// The shell words that do it in dom0.
    pub(super) fn script(&self, lab: &Lab) -> String {
        match self {
            Self::LiveOn(word) => {
                let requests = lived_on(word, &DISKS).join(" ; ");
                format!("guest-ask {NAME} 60 {}", quote(&requests))
            }
            other => product(lab).1.command(&other.command().unwrap_or_default()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LiveOn(word) => write!(f, "live on to {word}"),
            Self::Create { name, external } => {
                let how = if *external { " (external)" } else { "" };
                write!(f, "create {name}{how}")
            }
            Self::Revert(name) => write!(f, "revert to {name}"),
            Self::Delete(name) => write!(f, "delete {name}"),
        }
    }
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            snapshots: Vec::new(),
            word: String::new(),
            disks: Written::default(),
            counter: 0,
        }
    }

    /// What is done before any cut: each kind once, with disks held in both ways, and one snapshot that stays.
    pub(super) fn introduction(&mut self) -> Vec<Action> {
        let second = self.new_name("s");
        let create = |name: &str, external| Action::Create {
            name: name.to_owned(),
            external,
        };
        vec![
            self.live_on(),
            create(FIRST, false),
            create(&second, true),
            self.live_on(),
            Action::Revert(second.clone()),
            Action::Delete(second),
        ]
    }

    /// A few actions, of which the last but one is of the given kind.
    pub(super) fn actions(&mut self, target: Kind, random: &mut Random) -> Vec<Action> {
        let mut then = self.clone();
        let mut actions = Vec::new();
        let mut add = |then: &mut Self, action: Action| {
            then.apply(&action);
            actions.push(action);
        };
        let live_on = then.live_on();
        add(&mut then, live_on);
        let has_others = then.snapshots.len() > 1;
        if (target != Kind::Create && !has_others) || (target == Kind::Create && random.is_heads())
        {
            let create = then.new_snapshot(random);
            add(&mut then, create);
            let live_on = then.live_on();
            add(&mut then, live_on);
        }
        let action = then.some(target, random);
        add(&mut then, action);
        let kind = *random.choose(&Kind::ALL).unwrap_or(&Kind::Create);
        let action = then.some(kind, random);
        add(&mut then, action);
        // No name is given twice.
        self.counter = then.counter;
        actions
    }

    /// An action of this kind, or of another one where there can be none.
    fn some(&mut self, kind: Kind, random: &mut Random) -> Action {
        let others: Vec<_> = self
            .snapshots
            .iter()
            .filter(|taken| taken.name != FIRST)
            .map(|taken| taken.name.clone())
            .collect();
        match kind {
            Kind::Create if self.snapshots.len() < SNAPSHOTS_MAX => self.new_snapshot(random),
            Kind::Revert => {
                let names: Vec<_> = self.snapshots.iter().map(|taken| &taken.name).collect();
                Action::Revert(random.choose(&names).map_or(FIRST, |name| name).to_owned())
            }
            Kind::Create | Kind::Delete => match random.choose(&others) {
                Some(name) => Action::Delete(name.clone()),
                None => self.new_snapshot(random),
            },
        }
    }

    fn new_snapshot(&mut self, random: &mut Random) -> Action {
        Action::Create {
            name: self.new_name("s"),
            external: random.is_heads(),
        }
    }

    pub(super) fn live_on(&mut self) -> Action {
        Action::LiveOn(self.new_name("word"))
    }

    fn new_name(&mut self, what: &str) -> String {
        self.counter += 1;
        format!("{what}{}", self.counter)
    }

    /// The action was done.
    pub(super) fn apply(&mut self, action: &Action) {
        match action {
            Action::LiveOn(word) => {
                word.clone_into(&mut self.word);
                for place in places(word) {
                    self.disks[(place - LIVED.0) as usize] = Some(word.clone());
                }
            }
            Action::Create { name, .. } => self.snapshots.push(Taken {
                name: name.clone(),
                word: self.word.clone(),
                disks: self.disks.clone(),
            }),
            Action::Revert(name) => {
                if let Some(taken) = self.taken(name).cloned() {
                    self.word = taken.word;
                    self.disks = taken.disks;
                }
            }
            Action::Delete(name) => self.snapshots.retain(|taken| taken.name != *name),
        }
    }

    pub(super) fn taken(&self, name: &str) -> Option<&Taken> {
        self.snapshots.iter().find(|taken| taken.name == name)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.snapshots
            .iter()
            .map(|taken| taken.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_but_one_is_what_was_asked_for_and_names_are_new() {
        for seed in 0..200 {
            let mut random = Random::new(seed);
            let mut model = Model::new();
            let mut made = Vec::new();
            for action in model.introduction() {
                model.apply(&action);
            }
            for round in 0..12 {
                let target = Kind::ALL[round % 3];
                let actions = model.actions(target, &mut random);
                let last_but_one = &actions[actions.len() - 2];
                if target == Kind::Create && model.snapshots.len() >= SNAPSHOTS_MAX - 1 {
                    assert!(last_but_one.kind().is_some());
                } else {
                    assert_eq!(last_but_one.kind(), Some(target), "{actions:?}");
                }
                for action in actions {
                    if let Action::Create { name, .. } | Action::LiveOn(name) = &action {
                        assert!(!made.contains(name), "{name} again");
                        made.push(name.clone());
                    }
                    if let Action::Revert(name) | Action::Delete(name) = &action {
                        assert!(model.taken(name).is_some(), "{name} is not there");
                    }
                    model.apply(&action);
                    assert!(model.taken(FIRST).is_some());
                }
            }
        }
    }
}
