//! What differs for a toolstack that uses the C library.

use super::{CALLS_MAX, FAULTS, attempt, prepared, revert};
use crate::ErrorKind;
use crate::event::Unobserved;
use crate::model::domain::Keeper;

#[test]
fn who_recovers_leaves_the_domain_to_whom_it_belongs() {
    let mut restored = 0;
    for fault in FAULTS {
        for at in 0..CALLS_MAX {
            let (root, shared) = prepared();
            shared.0.borrow_mut().inject(at, fault);
            // `attempt` makes a host of the command line's; a toolstack's is begun here.
            let host = shared.host(root.path()).for_toolstack();
            let _ = attempt(&shared, root.path(), |_| revert(&host, "one"));
            if !shared.0.borrow_mut().heal() {
                break;
            }
            let command_line = shared.host(root.path());
            command_line.snapshots(super::NAME, &Unobserved).unwrap();
            let world = shared.0.borrow();
            for keeper in &world.restored_for {
                assert_eq!(*keeper, Keeper::Caller, "call {at}, {fault:?}");
                restored += 1;
            }
        }
    }
    assert!(restored > 10, "{restored}");
}

#[test]
fn digits_are_a_name_for_a_toolstack_and_a_domid_for_the_command_line() {
    let (root, shared) = prepared();
    let domid = shared.0.borrow().domains.keys().next().unwrap().to_string();
    let host = shared.host(root.path());
    assert!(host.snapshots(&domid, &Unobserved).is_ok());
    let error = host.for_toolstack().snapshots(&domid, &Unobserved);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NoSuchDomain);
}
