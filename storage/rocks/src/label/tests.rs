//! Labels as text, of every format, and how manifests compare.

use super::*;

fn label(clean: Option<Ending>) -> Label {
    Label {
        store: StoreId(Uuid::from_u128(1)),
        cluster: ClusterId(Uuid::from_u128(2)),
        incarnation: Incarnation(7),
        run: RunId(Uuid::from_u128(3)),
        announced: [4, 5, 0, 0].map(|no| RunId(Uuid::from_u128(no))),
        boot: Uuid::from_u128(6),
        begun: clean.is_none().then(|| Manifest { name: "MANIFEST-000022".into(), len: 1298 }),
        opening: false,
        clean,
    }
}

/// As it is read when its format says nothing of runs.
fn old_label(clean: Option<Ending>) -> Label {
    let label = Label { boot: Uuid::nil(), ..label(clean) };
    Label { run: RunId::default(), announced: Announced::default(), ..label }
}

fn ending(blobs: Option<&str>) -> Ending {
    let manifest = Manifest { name: "MANIFEST-000031".to_owned(), len: 1744 };
    Ending { manifest, blobs: blobs.map(str::to_owned) }
}

#[test]
fn labels_round_trip() {
    for clean in [None, Some(ending(Some("51b0d7a2c94f3e68")))] {
        let label = label(clean);
        assert_eq!(label.to_string().parse(), Ok(label));
    }
    for label in [Label { begun: None, ..label(None) }, Label { opening: true, ..label(None) }] {
        assert_eq!(label.to_string().parse(), Ok(label));
    }
}

#[test]
fn a_manifest_follows_one_that_is_not_newer_and_not_longer() {
    let of = |no: u64, len| Manifest { name: format!("MANIFEST-{no:06}"), len };
    let begun = of(999_999, 700);
    assert!(of(999_999, 900).follows(&begun, 700) && !of(999_999, 900).follows(&begun, 699));
    assert!(of(1_000_000, 50).follows(&begun, 50));
    assert!(!of(999_999, 900).follows(&of(1_000_000, 50), 900));
}

#[test]
fn version_1_stays_readable() {
    let old = "smalti store\nformat 1\nstore 00000000-0000-0000-0000-000000000001\n\
               cluster 00000000-0000-0000-0000-000000000002\nincarnation 7\n\
               state clean MANIFEST-000031 1744\ncheck 570cd37b2614102b\n";
    assert_eq!(old.parse(), Ok(old_label(Some(ending(None)))));
}

/// As formats 2 to 4 wrote it; they differ in what else is in the store.
fn of_format(format: u32, check: &str) -> String {
    format!(
        "smalti store\nformat {format}\nstore 00000000-0000-0000-0000-000000000001\n\
         cluster 00000000-0000-0000-0000-000000000002\nincarnation 7\n\
         state clean MANIFEST-000031 1744 blobs 51b0d7a2c94f3e68\ncheck {check}\n"
    )
}

#[test]
fn versions_2_to_4_stay_readable() {
    let checks = [(2, "58c120730d432aa8"), (3, "e674eb5c03411cfd"), (4, "0bd8b1eadda5059e")];
    for (format, check) in checks {
        let label = old_label(Some(ending(Some("51b0d7a2c94f3e68"))));
        assert_eq!(of_format(format, check).parse(), Ok(label), "format {format}");
    }
}

#[test]
fn version_5_stays_readable() {
    let label = label(Some(ending(Some("51b0d7a2c94f3e68"))));
    let label = Label { announced: Announced::default(), boot: Uuid::nil(), ..label };
    let text = "smalti store\nformat 5\nstore 00000000-0000-0000-0000-000000000001\n\
                cluster 00000000-0000-0000-0000-000000000002\nincarnation 7\n\
                run 00000000-0000-0000-0000-000000000003\n\
                state clean MANIFEST-000031 1744 blobs 51b0d7a2c94f3e68\ncheck ae53abd65259f9c6\n";
    assert_eq!(text.parse(), Ok(label));
}

/// As formats from 6 on wrote it: `boot` is what 6 had not.
fn since_6(format: u32, boot: &str, state: &str, check: &str) -> String {
    format!(
        "smalti store\nformat {format}\nstore 00000000-0000-0000-0000-000000000001\n\
         cluster 00000000-0000-0000-0000-000000000002\nincarnation 7\n\
         run 00000000-0000-0000-0000-000000000003\n\
         announced 00000000-0000-0000-0000-000000000004 \
         00000000-0000-0000-0000-000000000005 \
         00000000-0000-0000-0000-000000000000 \
         00000000-0000-0000-0000-000000000000\n\
         {boot}state {state}\ncheck {check}\n"
    )
}

const BOOT_LINE: &str = "boot 00000000-0000-0000-0000-000000000006\n";
const CLEAN: &str = "clean MANIFEST-000031 1744 blobs 51b0d7a2c94f3e68";

#[test]
fn versions_6_and_7_stay_readable() {
    let label = label(Some(ending(Some("51b0d7a2c94f3e68"))));
    let text = since_6(7, BOOT_LINE, CLEAN, "e071ea353d2da45c");
    assert_eq!(text.parse(), Ok(label.clone()));
    let text = since_6(6, "", CLEAN, "be8dcec19a01c4de");
    assert_eq!(text.parse(), Ok(Label { boot: Uuid::nil(), ..label }));
}

#[test]
fn version_8_stays_as_it_is() {
    let text = since_6(8, BOOT_LINE, "open MANIFEST-000022 1298", "fb754d0d07e36372");
    assert_eq!(label(None).to_string(), text);
}

#[test]
fn the_kernel_names_the_start_of_the_machine() {
    assert_ne!(boot(), Uuid::nil());
    assert_eq!(boot(), boot());
}

#[test]
fn no_cut_or_changed_byte_is_taken() {
    for clean in [None, Some(ending(Some("51b0d7a2c94f3e68")))] {
        no_cut_or_changed_byte_of_is_taken(&label(clean).to_string());
    }
}

fn no_cut_or_changed_byte_of_is_taken(good: &str) {
    for at in 0..good.len() {
        assert!(good[..at].parse::<Label>().is_err(), "cut at {at}");
        let mut bad = good.to_owned().into_bytes();
        bad[at] ^= 1;
        let bad = String::from_utf8(bad).expect("ascii stays ascii");
        assert!(bad.parse::<Label>().is_err(), "changed at {at}: {bad}");
    }
}
