//! The recorded Rust outputs compile, and behave like libxl's own C code.

use std::ffi::CStr;
use std::ptr;

mod imported;

#[allow(
    unused,
    unreachable_pub,
    private_interfaces,
    clippy::pedantic,
    reason = "the outputs are recorded whole"
)]
mod features {
    include!("golden/features.rs");
    include!("golden/features.layout.rs");
}

#[allow(
    unused,
    unreachable_pub,
    private_interfaces,
    clippy::pedantic,
    reason = "the outputs are recorded whole"
)]
mod ext {
    include!("golden/libxl_ext_types.rs");
    include!("golden/libxl_ext_types.layout.rs");
}

use ext::{DiskSnapshot, DomainSnapshot, SnapshotRevert};
use features::{Colour, Everything, EverythingU, EverythingUHvm, EverythingV, Point, Signal};
use libxl_idl_builtin::{Bitmap, CValue, Defbool};
use serde_json::{Value, json};

/// A value with something in each field.
fn full() -> Everything {
    Everything {
        name: Some("full".to_owned()),
        r#type: true,
        enabled: Defbool::False,
        devid: 7,
        memory: 1,
        cpus: Bitmap::from_iter([0, 9, 64]),
        colour: Colour::Red,
        colours: vec![Colour::Red, Colour::Unknown],
        signal: Some(Signal::Error),
        points: vec![Point { x: 1, y: 2 }, Point::default()],
        disk: imported::DeviceDisk {
            vdev: "xvda".to_owned(),
        },
        u: EverythingU::Hvm(EverythingUHvm {
            firmware: Some("bios".to_owned()),
            at: Point::default(),
        }),
        v: EverythingV::Error(features::EverythingVError { code: -5 }),
        ..Everything::default()
    }
}

fn print<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("it can be printed")
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("it can be parsed")
}

/// What is always printed of `Everything`.
fn always() -> Value {
    json!({ "disk": { "vdev": "" }, "nested": { "deep": {} }, "kind.invalid": {} })
}

#[test]
fn defaults_are_those_of_the_idl() {
    let everything = Everything::default();
    assert_eq!(everything.devid, -1);
    assert_eq!(everything.memory, u64::MAX);
    assert_eq!(everything.retries, 3);
    assert_eq!(everything.colour, Colour::Unknown);
    assert_eq!(everything.signal, None);
    assert_eq!(everything.u, EverythingU::Invalid);
    assert_eq!(everything.v, EverythingV::Unset);
    assert_eq!(Point::default(), Point { x: -1, y: 0 });
}

#[test]
fn fields_with_their_default_are_not_printed() {
    assert_eq!(print(&Everything::default()), always());
}

#[test]
fn other_fields_are_printed_in_their_order() {
    let everything = Everything {
        name: Some(String::new()),
        r#type: true,
        enabled: Defbool::False,
        enabled_new: Defbool::True,
        devid: 0,
        memory: 0,
        size: 1,
        retries: 0,
        cpus: Bitmap::from_iter([5, 1]),
        colour: Colour::Red,
        colours: vec![Colour::Unknown, Colour::Red],
        signal: Some(Signal::Return),
        points: vec![Point::default(), Point { x: 0, y: 1 }],
        u: EverythingU::Hvm(EverythingUHvm {
            firmware: None,
            at: Point { x: -1, y: 2 },
        }),
        v: EverythingV::Return,
        ..Everything::default()
    };
    let text = serde_json::to_string(&everything).expect("it can be printed");
    let expected = concat!(
        r#"{"name":"","type":true,"enabled":"False","enabled_new":"True","devid":0,"memory":0,"#,
        r#""size":1,"retries":0,"cpus":[1,5],"colour":"red","colours":["unknown","red"],"#,
        r#""signal":"return","points":[{},{"x":0,"y":1}],"disk":{"vdev":""},"#,
        r#""nested":{"deep":{}},"kind.hvm":{"at":{"y":2}}}"#
    );
    assert_eq!(text, expected);
    let again: Everything = serde_json::from_str(&text).expect("it can be parsed");
    // The key `return` has no member, so it leaves no trace.
    assert_eq!(
        again,
        Everything {
            v: EverythingV::Unset,
            ..everything
        }
    );
}

#[test]
fn values_of_an_unexpected_kind_count_as_absent() {
    let odd = json!({
        "name": 5, "type": "yes", "devid": 1.5, "cpus": {}, "points": 3, "nested": [], "kind.hvm": 1,
        "unknown": null,
    });
    assert_eq!(parse::<Everything>(odd), Everything::default());
    assert_eq!(parse::<Point>(json!([1, 2])), Point::default());
}

#[test]
fn wrong_values_of_the_expected_kind_are_errors() {
    for wrong in [
        json!({ "colour": "green" }),
        json!({ "retries": 65536 }),
        json!({ "enabled": "maybe" }),
        json!({ "points": [{ "x": 2_147_483_648_u64 }] }),
        json!({ "kind.hvm": {}, "kind.pv": {} }),
    ] {
        assert!(
            serde_json::from_value::<Everything>(wrong.clone()).is_err(),
            "{wrong}"
        );
    }
    let deep = json!({ "nested": { "deep": { "deeper": -1 } } });
    let error = serde_json::from_value::<Everything>(deep).expect_err("it is negative");
    assert!(
        error.to_string().starts_with("nested: deep: deeper: "),
        "{error}"
    );
}

#[test]
fn the_first_of_repeated_keys_counts() {
    let point: Point = serde_json::from_str(r#"{"x": 1, "x": 2}"#).expect("it can be parsed");
    assert_eq!(point.x, 1);
    let text = r#"{"nested": {"deep": {"deeper": 1, "deeper": 2}}, "points": [{"y": 3, "y": 4}]}"#;
    let everything: Everything = serde_json::from_str(text).expect("it can be parsed");
    assert_eq!(everything.nested.deep.deeper, 1);
    assert_eq!(everything.points[0].y, 3);
}

#[test]
fn lists_keep_repeated_keys() {
    let text = r#"{"settings": {"a": "1", "b": null, "a": "2"}}"#;
    let everything: Everything = serde_json::from_str(text).expect("it can be parsed");
    let settings = everything.settings.0.iter();
    let values: Vec<_> = settings.filter_map(|(_, value)| value.as_deref()).collect();
    assert_eq!(values, ["1", "2"]);
}

#[test]
fn enumerations_are_found_by_name_and_number() {
    assert_eq!("RED".parse(), Ok(Colour::Red));
    assert_eq!(Colour::try_from(1), Ok(Colour::Red));
    assert_eq!(Colour::Red.to_string(), "red");
    let error = "pink".parse::<Colour>().expect_err("no such colour");
    assert_eq!(error.to_string(), "`pink` is no libxl_colour");
    let error = Colour::try_from(7).expect_err("no such colour");
    assert_eq!(error.to_string(), "7 is no libxl_colour");
    assert_eq!(parse::<Colour>(json!("Red")), Colour::Red);
}

#[test]
fn unions_know_their_key() {
    let union = EverythingU::from_key(features::GuestKind::Hvm);
    assert_eq!(union.key(), Some(features::GuestKind::Hvm));
    assert_eq!(EverythingV::Unset.key(), None);
}

#[test]
fn snapshots_survive_json() {
    let snapshot = DomainSnapshot {
        name: Some("before".to_owned()),
        creation_time: 1_700_000_000,
        memory: true,
        disks: vec![DiskSnapshot {
            external: true,
            ..DiskSnapshot::default()
        }],
        ..DomainSnapshot::default()
    };
    let printed = print(&snapshot);
    assert_eq!(
        printed,
        json!({
            "name": "before", "creation_time": 1_700_000_000, "memory": true,
            "disks": [{ "disk": { "vdev": "" }, "external": true, "external_sn": { "vdev": "" } }],
        })
    );
    assert_eq!(parse::<DomainSnapshot>(printed), snapshot);
    assert_eq!(SnapshotRevert::Force.as_raw(), 4);
    assert_eq!(ext::ffi::LIBXL_DOMAIN_SNAPSHOT_REVERT_FORCE, 4);
}

#[test]
fn values_survive_the_way_through_c() {
    for value in [Everything::default(), full()] {
        let mut c = Everything::zeroed();
        value.write(&mut c).expect("it has a C form");
        let mut copy = Everything::zeroed();
        // SAFETY: both were made by this crate, and are disposed once.
        unsafe {
            features::c_api::libxl_everything_copy(ptr::null_mut(), &raw mut copy, &raw const c);
            features::c_api::libxl_everything_dispose(&raw mut c);
            features::c_api::libxl_everything_dispose(&raw mut c);
            assert_eq!(Everything::read(&copy), Ok(value));
            features::c_api::libxl_everything_dispose(&raw mut copy);
            assert!(copy.name.is_null() && copy.num_points == 0);
        }
    }
}

#[test]
fn c_values_start_like_safe_ones() {
    let mut c = Everything::zeroed();
    // SAFETY: the memory is that of a value.
    unsafe {
        features::c_api::libxl_everything_init(&raw mut c);
        assert_eq!((c.devid, c.memory, c.kind), (-1, u64::MAX, -1));
        assert_eq!(Everything::read(&c), Ok(Everything::default()));
        features::c_api::libxl_everything_init_kind(
            &raw mut c,
            features::ffi::LIBXL_GUEST_KIND_HVM,
        );
        assert_eq!((c.kind, c.u.hvm.at.x), (1, -1));
        features::c_api::libxl_everything_dispose(&raw mut c);
    }
}

#[test]
fn json_goes_through_the_c_functions() {
    let mut c = Everything::zeroed();
    full().write(&mut c).expect("it has a C form");
    // SAFETY: the strings come from the functions themselves.
    unsafe {
        let text = features::c_api::libxl_everything_to_json(ptr::null_mut(), &raw mut c);
        let parsed: Value = serde_json::from_slice(CStr::from_ptr(text).to_bytes()).expect("JSON");
        assert_eq!(parsed, print(&full()));
        features::c_api::libxl_everything_dispose(&raw mut c);
        let from_json = features::c_api::libxl_everything_from_json;
        assert_eq!(from_json(ptr::null_mut(), &raw mut c, text), 0);
        assert_eq!(Everything::read(&c), Ok(full()));
        libc::free(text.cast());
        features::c_api::libxl_everything_dispose(&raw mut c);
        for wrong in [
            c"{",
            c"{\"colour\": \"green\"}",
            c"{\"name\": \"a\\u0000b\"}",
        ] {
            assert_eq!(from_json(ptr::null_mut(), &raw mut c, wrong.as_ptr()), -3);
            assert_eq!(Everything::read(&c), Ok(Everything::default()));
            features::c_api::libxl_everything_dispose(&raw mut c);
        }
    }
}

#[test]
fn imported_types_are_given_the_ctx() {
    let mut ctx = [0_u8; 3];
    let [to_json, from_json, copy] = ctx.each_mut().map(|ctx| ptr::from_mut(ctx).cast());
    let mut c = ext::DiskSnapshot::zeroed();
    let mut other = ext::DiskSnapshot::zeroed();
    // SAFETY: the values are valid, and nothing looks into the ctx.
    unsafe {
        let text = ext::c_api::libxl_disk_snapshot_to_json(to_json, &raw mut c);
        assert_eq!(imported::CTX.get(), to_json);
        ext::c_api::libxl_disk_snapshot_from_json(from_json, &raw mut c, text);
        assert_eq!(imported::CTX.get(), from_json);
        ext::c_api::libxl_disk_snapshot_copy(copy, &raw mut other, &raw const c);
        assert_eq!(imported::CTX.get(), copy);
        libc::free(text.cast());
        ext::c_api::libxl_disk_snapshot_dispose(&raw mut c);
        ext::c_api::libxl_disk_snapshot_dispose(&raw mut other);
    }
}

#[test]
fn what_has_no_safe_form_is_an_error() {
    let mut c = Everything::zeroed();
    full().write(&mut c).expect("it has a C form");
    c.colour = 77;
    // SAFETY: the value was made above.
    unsafe {
        let error = Everything::read(&c).expect_err("no such colour");
        assert_eq!(error.to_string(), "77 is no libxl_colour");
        assert!(features::c_api::libxl_everything_to_json(ptr::null_mut(), &raw mut c).is_null());
        features::c_api::libxl_everything_dispose(&raw mut c);
    }
}

#[test]
fn layouts_are_tables() {
    let find = |name: &str| features::LAYOUT.iter().find(|entry| entry.0 == name);
    assert_eq!(find("libxl_point"), Some(&("libxl_point", 8, 4)));
    let hvm = "libxl_everything.u.hvm";
    let size = size_of::<features::ffi::libxl_everything_u_hvm>();
    assert!(find(hvm).is_some_and(|entry| entry.1 % 8 == 0 && entry.2 == size));
    let members = ext::LAYOUT
        .iter()
        .filter(|entry| entry.0.starts_with("libxl_domain_snapshot."));
    let end = members.map(|(_, offset, size)| offset + size).max();
    assert_eq!(end, Some(size_of::<ext::ffi::libxl_domain_snapshot>()));
}

#[test]
fn enumerations_have_their_c_functions() {
    let mut value = 0;
    // SAFETY: the strings are constants.
    unsafe {
        let from_string = ext::c_api::libxl_snapshot_revert_from_string;
        assert_eq!(from_string(c"FORCE".as_ptr(), &raw mut value), 0);
        assert_eq!(value, ext::ffi::LIBXL_DOMAIN_SNAPSHOT_REVERT_FORCE);
        assert_eq!(from_string(c"gently".as_ptr(), &raw mut value), -3);
        let text = ext::c_api::libxl_snapshot_revert_to_string(2);
        assert_eq!(CStr::from_ptr(text), c"paused");
        assert!(ext::c_api::libxl_snapshot_revert_to_string(3).is_null());
    }
}
