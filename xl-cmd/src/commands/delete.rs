//! `snapshot-delete`

use super::Context;
use crate::args::Delete;
use libxl_ext::Result;
use libxl_ext::plan::{DeleteRequest, DeleteScope, Request};

pub(super) fn run(context: &Context, args: &Delete) -> Result<()> {
    let scope = args.scope();
    let request = DeleteRequest {
        name: args.name.clone(),
        scope,
    };
    context.change(
        &args.domain,
        &Request::Delete(request),
        args.output,
        |done| {
            let what = what_was_done(&args.name, scope, done.plan.deleted().len());
            format!("Domain '{}': {what}\n", done.plan.domain)
        },
    )
}

/// In words, where `count` snapshots were deleted.
fn what_was_done(name: &str, scope: DeleteScope, count: usize) -> String {
    let below = |count| match count {
        1 => "1 descendant".to_owned(),
        count => format!("{count} descendants"),
    };
    match (scope, count) {
        (DeleteScope::WithChildren, 2..) => {
            format!("snapshot '{name}' and its {} deleted", below(count - 1))
        }
        (DeleteScope::Only | DeleteScope::WithChildren, _) => format!("snapshot '{name}' deleted"),
        (DeleteScope::ChildrenOnly, 0) => format!("snapshot '{name}' has no children"),
        (DeleteScope::ChildrenOnly, _) => {
            format!("{} of snapshot '{name}' deleted", below(count))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_is_counted() {
        use DeleteScope::{ChildrenOnly, Only, WithChildren};
        for (scope, count, words) in [
            (Only, 1, "snapshot 's' deleted"),
            (WithChildren, 1, "snapshot 's' deleted"),
            (WithChildren, 2, "snapshot 's' and its 1 descendant deleted"),
            (
                WithChildren,
                3,
                "snapshot 's' and its 2 descendants deleted",
            ),
            (ChildrenOnly, 0, "snapshot 's' has no children"),
            (ChildrenOnly, 1, "1 descendant of snapshot 's' deleted"),
            (ChildrenOnly, 2, "2 descendants of snapshot 's' deleted"),
        ] {
            assert_eq!(what_was_done("s", scope, count), words);
        }
    }
}
