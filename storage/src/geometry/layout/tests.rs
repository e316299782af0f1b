use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

fn layout(n: u8, shard_size: u32, groups: u16, key: u8) -> Layout {
    let geometry = Geometry::new(n, 1, shard_size, groups).expect("valid");
    Layout::new(geometry, &PlaceKey::new([key; 32]))
}

fn any_layout() -> impl Strategy<Value = Layout> {
    (1u8..=31, 16u32..=26, 1u16..=300, any::<[u8; 32]>()).prop_map(|(n, bits, groups, key)| {
        let geometry = Geometry::new(n, 1, 1 << bits, groups).expect("valid");
        Layout::new(geometry, &PlaceKey::new(key))
    })
}

proptest! {
    #[test]
    fn block_of_undoes_locate(layout in any_layout(), block: u64) {
        for block in [block, block >> 16, block >> 32, block >> 48] {
            let place = layout.locate(block);
            prop_assert!(layout.geometry().data_slots().contains(place.slot));
            prop_assert!(place.row.group.0 < layout.geometry().groups);
            prop_assert_eq!(layout.block_of(place.row, place.slot), Some(block));
        }
    }

    #[test]
    fn locate_undoes_block_of(layout in any_layout(), stripe in 0u64..1 << 40, index in 0u32..30_000) {
        let group = layout.group_of(stripe);
        let row = RowAddr { group, stripe, index };
        let rows = layout.stripe_rows(stripe);
        let inside = u64::from(index) < rows.end - rows.start;
        prop_assert_eq!(layout.row_number(row).is_some(), inside);
        for slot in layout.geometry().slots().iter() {
            let block = layout.block_of(row, slot);
            let is_data = layout.geometry().data_slots().contains(slot);
            prop_assert_eq!(block.is_some(), inside && is_data);
            if let Some(block) = block {
                prop_assert_eq!(layout.locate(block), BlockPlace { row, slot });
                let blocks = layout.blocks_of(row).expect("the row is there");
                prop_assert_eq!(blocks[slot.index()], block);
            }
        }
    }

    #[test]
    fn stripes_tile_the_rows(layout in any_layout(), stripe in 0u64..1 << 40) {
        let mean = u64::from(layout.geometry().rows_per_stripe());
        let rows = layout.stripe_rows(stripe);
        prop_assert_eq!(rows.end, layout.stripe_rows(stripe + 1).start);
        let length = rows.end - rows.start;
        prop_assert!(length > mean / 2 && length < 2 * mean, "{} rows", length);
        prop_assert_eq!(layout.row_addr(rows.start).stripe, stripe);
        prop_assert_eq!(layout.row_addr(rows.end - 1).stripe, stripe);
        prop_assert_eq!(layout.stripes(rows.start), stripe);
        prop_assert_eq!(layout.stripes(rows.start + 1), stripe + 1);
        prop_assert_eq!(layout.stripes(rows.end), stripe + 1);
    }

    #[test]
    fn no_question_panics(layout in any_layout(), block: u64, stripe: u64, index: u32, g: u16, slot: u8) {
        for block in [block, u64::MAX - block % 70_000] {
            let place = layout.locate(block);
            prop_assert_eq!(layout.block_of(place.row, place.slot), Some(block));
        }
        for stripe in [stripe, u64::MAX - stripe % 4, u64::MAX / 16, u64::MAX / 16 + 1] {
            let row = RowAddr { group: GroupNo(g), stripe, index };
            if let Some(block) = layout.block_of(row, Slot(slot)) {
                prop_assert_eq!(layout.locate(block), BlockPlace { row, slot: Slot(slot) });
            }
            layout.blocks_of(row);
        }
    }
}

#[test]
fn every_block_of_a_volume_has_its_own_place() {
    for n in [1, 2, 3, 4, 8, 31] {
        let layout = layout(n, 1 << 16, 5, n);
        let mut seen = HashSet::new();
        let blocks = u64::from(n) * 3000;
        for block in 0..blocks {
            assert!(seen.insert(layout.locate(block)), "block {block} of n={n} shares a place");
        }
        // And without holes: every data slot of every complete stripe below is taken.
        for stripe in 0..layout.stripes(3000) - 1 {
            let rows = layout.stripe_rows(stripe);
            for index in 0..u32::try_from(rows.end - rows.start).expect("small") {
                let row = RowAddr { group: layout.group_of(stripe), stripe, index };
                for slot in layout.geometry().data_slots().iter() {
                    assert!(seen.contains(&BlockPlace { row, slot }), "hole at {row} {slot}");
                }
            }
        }
    }
}

#[test]
fn other_groups_parity_slots_and_overlong_indices_hold_no_block() {
    let layout = layout(4, 1 << 20, 8, 1);
    let place = layout.locate(12_345);
    let mut other = place.row;
    other.group = GroupNo((other.group.0 + 1) % 8);
    assert_eq!(layout.block_of(other, place.slot), None);
    assert_eq!(layout.block_of(place.row, Slot(4)), None);
    assert_eq!(layout.block_of(place.row, Slot(255)), None);
    let beyond = RowAddr { index: u32::MAX, ..place.row };
    assert_eq!(layout.block_of(beyond, place.slot), None);
}

/// Neighbouring blocks of one row never share a shard; across a row's end, two neighbours meet on
/// one slot with chance 1/n.
#[test]
fn neighbours_part_at_the_expected_rate() {
    let n = 4u64;
    let layout = layout(4, 1 << 20, 8, 2);
    let rows = 40_000;
    let (mut met, mut crossings) = (0u32, 0u32);
    let mut slot_of_first = [0u32; 4];
    for row in 0..rows {
        let slots: Vec<Slot> = (row * n..row * n + n).map(|b| layout.locate(b).slot).collect();
        assert_eq!(slots.iter().collect::<HashSet<_>>().len(), 4);
        slot_of_first[slots[0].index()] += 1;
        crossings += 1;
        met += u32::from(slots[3] == layout.locate(row * n + n).slot);
    }
    // 40,000 draws at 1/4: the standard deviation is 87; 500 is beyond five of them.
    for count in slot_of_first.into_iter().chain([met]) {
        assert!(count.abs_diff(crossings / 4) < 500, "{count} of {crossings}");
    }
}

#[test]
fn all_orders_of_a_row_appear_equally() {
    let layout = layout(4, 1 << 20, 8, 3);
    let mut orders = HashMap::new();
    for row in 0..24_000 {
        *orders.entry(layout.order(row)[..4].to_vec()).or_insert(0u32) += 1;
    }
    assert_eq!(orders.len(), 24);
    // Expected 1000 each with a deviation of 31.
    assert!(orders.values().all(|count| count.abs_diff(1000) < 160), "{orders:?}");
}

#[test]
fn boundaries_belong_to_the_key() {
    let (a, b) = (layout(2, 1 << 20, 8, 4), layout(2, 1 << 20, 8, 5));
    let starts = |l: &Layout| (1..2000).map(|s| l.stripe_rows(s).start).collect::<Vec<_>>();
    let (a, b) = (starts(&a), starts(&b));
    // 128 equally likely boundaries: about 16 of 1999 agree by chance.
    let equal = a.iter().zip(&b).filter(|(a, b)| a == b).count();
    assert!(equal < 50, "{equal} of 1999 boundaries agree between two keys");
    let mut shifts = [0u32; 128];
    for (stripe, start) in (1u64..).zip(&a) {
        shifts[usize::try_from(start - stripe * 256).expect("below R/2")] += 1;
    }
    assert!(shifts.iter().all(|count| *count < 50), "boundaries are spread: {shifts:?}");
}

#[test]
fn groups_are_balanced() {
    let layout = layout(2, 1 << 20, 32, 6);
    let mut counts = [0u32; 32];
    for stripe in 0..64_000 {
        counts[usize::from(layout.group_of(stripe).0)] += 1;
    }
    // Expected 2000 each with a deviation of 44.
    assert!(counts.iter().all(|count| count.abs_diff(2000) < 250), "{counts:?}");
}

/// Places written today must be found by every later build.
#[test]
fn places_never_change() {
    let key = PlaceKey::new(std::array::from_fn(|i| i as u8));
    let layout = Layout::new(Geometry::new(4, 2, 1 << 20, 32).expect("valid"), &key);
    let places: Vec<_> = [0, 1, 2, 3, 1022, 1023, 1024, 1_000_000, 1 << 40]
        .into_iter()
        .map(|block| {
            let BlockPlace { row, slot } = layout.locate(block);
            (row.group.0, row.stripe, row.index, slot.0)
        })
        .collect();
    assert_eq!(places, FIXED_PLACES);
}

const FIXED_PLACES: [(u16, u64, u32, u8); 9] = [
    (15, 0, 0, 2),
    (15, 0, 0, 1),
    (15, 0, 0, 0),
    (15, 0, 0, 3),
    (15, 0, 255, 2),
    (15, 0, 255, 1),
    (15, 0, 256, 0),
    (14, 976, 121, 1),
    (8, 1073741823, 184, 0),
];
