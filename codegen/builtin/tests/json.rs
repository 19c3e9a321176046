//! The builtin types in libxl's JSON dialect.

use libxl_idl_builtin::json::{Kinds, Object};
use libxl_idl_builtin::{
    Bitmap, CpuidPolicyList, Defbool, Hwcap, IsDefault, KeyValueList, Mac, MsVmGenid, Uuid,
};
use proptest::prelude::*;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

fn round_trip<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("it can be printed");
    serde_json::from_str(&text).expect("it can be parsed")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn values_survive_json(
        uuid in any::<[u8; 16]>(),
        mac in any::<[u8; 6]>(),
        bits in prop::collection::vec(0..4096_u32, 0..20),
        words in any::<[u32; 4]>(),
        entries in prop::collection::vec((any::<String>(), any::<Option<String>>()), 0..8),
        defbool in prop::sample::select(vec![Defbool::Default, Defbool::False, Defbool::True]),
    ) {
        prop_assert_eq!(round_trip(&Uuid(uuid)), Uuid(uuid));
        prop_assert_eq!(Uuid(uuid).to_string().parse(), Ok(Uuid(uuid)));
        prop_assert_eq!(round_trip(&MsVmGenid(uuid)), MsVmGenid(uuid));
        prop_assert_eq!(round_trip(&Mac(mac)), Mac(mac));
        let bitmap: Bitmap = bits.into_iter().collect();
        prop_assert_eq!(&round_trip(&bitmap), &bitmap);
        let [a, b, c, d] = words;
        // Only half of it is printed.
        prop_assert_eq!(round_trip(&Hwcap([a, b, c, d, 5, 6, 7, 8])), Hwcap([a, b, c, d, 0, 0, 0, 0]));
        let list = KeyValueList(entries);
        prop_assert_eq!(&round_trip(&list), &list);
        prop_assert_eq!(round_trip(&defbool), defbool);
    }
}

#[test]
fn values_look_like_those_of_libxl() {
    let uuid: Uuid = "12345678-9ABC-def0-1234-56789abcdef0"
        .parse()
        .expect("a UUID");
    for (printed, expected) in [
        (json!(uuid), json!("12345678-9abc-def0-1234-56789abcdef0")),
        (
            json!(Mac([0, 0x16, 0x3e, 1, 2, 0xff])),
            json!("00:16:3e:01:02:ff"),
        ),
        (json!(Bitmap::from_iter([9, 1])), json!([1, 9])),
        (json!(Defbool::Default), json!("<default>")),
        (json!(Defbool::True), json!("True")),
        (json!(Hwcap::default()), json!([0, 0, 0, 0])),
        (
            json!(KeyValueList(vec![
                ("b".into(), None),
                ("a".into(), Some("1".into()))
            ])),
            json!({ "b": null, "a": "1" }),
        ),
    ] {
        assert_eq!(printed.to_string(), expected.to_string());
    }
}

#[test]
fn malformed_values_are_errors() {
    fn fails<T: DeserializeOwned>(value: &Value) {
        assert!(
            serde_json::from_value::<T>(value.clone()).is_err(),
            "{value}"
        );
    }
    fails::<Defbool>(&json!("true"));
    fails::<Uuid>(&json!("12345678-9abc-def0-1234-56789abcdef"));
    fails::<Uuid>(&json!("12345678-9abc-def0-1234-56789abcdef01"));
    fails::<Uuid>(&json!("é2345678-9abc-def0-1234-56789abcdef0"));
    fails::<Mac>(&json!("00:16:3e:01:02"));
    fails::<Mac>(&json!("00:16:3e:01:02:3"));
    fails::<Mac>(&json!("00:16:3e:01:02:03:04"));
    fails::<Mac>(&json!("00:16:3e:01:02:+3"));
    fails::<Bitmap>(&json!([-1]));
    fails::<Hwcap>(&json!([1, 2, 3]));
    fails::<MsVmGenid>(&json!([256, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    fails::<CpuidPolicyList>(&json!("x"));
    fails::<CpuidPolicyList>(&json!([1]));
    fails::<CpuidPolicyList>(&json!({ "cpuid": [] }));
    fails::<KeyValueList>(&json!({ "a": 1 }));
}

#[test]
fn defaults_are_recognised() {
    assert!(Defbool::Default.is_default() && !Defbool::False.is_default());
    assert!(Uuid::default().is_default() && !Uuid([1; 16]).is_default());
    assert!(Mac::default().is_default() && Bitmap::new().is_default());
    assert!(None::<String>.is_default() && !Some(String::new()).is_default());
    assert!(CpuidPolicyList::default().is_default());
    assert!(CpuidPolicyList(json!({ "cpuid": [], "msr": [] })).is_default());
    assert!(!CpuidPolicyList(json!([{ "leaf": 1 }])).is_default());
    // libxl prints it always.
    assert!(!Hwcap::default().is_default());
}

#[test]
fn what_is_taken_from_a_map_is_any_type_of_serde() {
    #[derive(Debug, PartialEq, Deserialize)]
    enum Shape {
        Point,
        Circle(u8),
        Box { width: i16, height: Option<f64> },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Wrapper(Vec<Shape>);

    let text = r#"{
        "shapes": ["Point", {"Circle": 7}, {"Box": {"width": -2, "height": 0.5}}],
        "none": null, "some": true, "map": {"a": [], "b": {}}, "pair": [1, "2", 3]
    }"#;
    let object: Object = serde_json::from_str(text).expect("it is a map");
    let shapes = vec![
        Shape::Point,
        Shape::Circle(7),
        Shape::Box {
            width: -2,
            height: Some(0.5),
        },
    ];
    assert_eq!(get(&object, "shapes"), Ok(Some(Wrapper(shapes))));
    assert_eq!(get(&object, "none"), Ok(Some(None::<u8>)));
    assert_eq!(get(&object, "some"), Ok(Some(Some(true))));
    let map: Result<Option<Value>, String> = get(&object, "map");
    assert_eq!(map, Ok(Some(json!({ "a": [], "b": {} }))));
    let error = get::<(u8, String)>(&object, "pair").expect_err("it is longer");
    assert!(error.starts_with("pair: invalid length 3"), "{error}");
    let error = get::<Shape>(&object, "some").expect_err("it is no shape");
    assert!(error.starts_with("some: invalid type: boolean"), "{error}");
}

fn get<T: DeserializeOwned>(object: &Object, key: &str) -> Result<Option<T>, String> {
    let value: Result<_, serde_json::Error> = object.get(key, Kinds::ANY);
    value.map_err(|error| error.to_string())
}
