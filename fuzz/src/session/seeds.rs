//! Where the search through sessions begins: one input for each thing a peer may do.

use super::{HELLOS, INTRODUCTION, STATEMENT, attached};
use crate::foreign::{ForeignGateway, Pair, framed, greeting};
use crate::sealed::payload_of;

pub(crate) fn service_seeds() -> Vec<Vec<u8>> {
    let peer = ForeignGateway::new(1, &[0; 32], Pair::generate(80), Pair::generate(81));
    let mut seeds = vec![
        [&[0, 0], &HELLOS[0][..]].concat(),
        [&[0, 0], &HELLOS[1][..]].concat(),
        [&[0, 0], &HELLOS[0][..76]].concat(),
        [&[1, 0], &greeting(&peer.ek(), 7)[..]].concat(),
        [&[1, 9], &greeting(&peer.ek(), 0)[..]].concat(),
        [&[4, 0], INTRODUCTION].concat(),
        b"\x84\x00\xa2\x01\x02\x02\x60".to_vec(),
        b"\x06\x00\x01\xa1\x01\x07".to_vec(),
        b"\x06\x00\x00early".to_vec(),
    ];
    // Not in their shortest form, or with a byte behind.
    let good = greeting(&peer.ek(), 0);
    for serial in [&[0x18, 5][..], &[0x19, 0, 99], &[0, 0], &[0x18, 24]] {
        seeds.push([&[1, 0], &good[..good.len() - 1], serial].concat());
    }
    for payload in [
        &b"\xa2\x01\x01\x02\x78\x01v"[..],
        b"\xa2\x01\x18\x01\x02\x60",
        b"\xa2\x01\x01\x02\x60\0",
    ] {
        seeds.push([&[4, 0], payload].concat());
    }
    for how in [2, 3, 5] {
        seeds.push(vec![how, 0]);
        seeds.push(vec![how, 0, 0, 0, 4, 3]);
        seeds.push(vec![how | 0x80, 3, 1, 0, 90, 2]);
        seeds.push(vec![how, 7, 2, 0, 80, 20, 3, 0, 10, 5, 0, 1]);
    }
    seeds
}

pub(crate) fn gateway_seeds() -> Vec<Vec<u8>> {
    let payload = payload_of(STATEMENT.bytes());
    let mut seeds = vec![
        [&[0, 0], &framed(&[7; 1251])[..]].concat(),
        vec![1, 0, 0xa0],
        vec![1, 0, 0xa0, 0xa0],
        vec![1, 0, 0xbf, 0xff],
        vec![1, 0, 0xb8, 0],
        [&[1, 0], &attached(STATEMENT.bytes())[..]].concat(),
        vec![3, 0, 6, 0xa1, 1, 0],
        vec![0x83, 0, 6, 0xa1, 1, 3],
        vec![3, 0, 1, 0xa1, 1, 7],
        [&[4, 0], &payload[..]].concat(),
        [&[0x84, 30], &payload[..]].concat(),
    ];
    for edits in [&[][..], &[0, 0, 4, 3], &[1, 4, 90, 2], &[2, 0, 80, 20]] {
        seeds.push([&[2, 0], edits].concat());
        seeds.push([&[0x82, 9], edits].concat());
    }
    seeds
}

pub(crate) fn records_seeds() -> Vec<Vec<u8>> {
    let plaintexts: [&[u8]; 9] = [
        b"\0stream bytes",
        &[2],
        &[3],
        &[1, 0xa1, 1, 7],
        &[1, 0xa1, 1, 10],
        &[6, 0xa1, 1, 0],
        &[],
        &[0],
        &[4, 1],
    ];
    let mut seeds = Vec::new();
    for side in [0, 1] {
        for plaintext in plaintexts {
            let length = u8::try_from(plaintext.len()).unwrap();
            let sealed = [&[1, 2, 2, 0, 9, length], plaintext].concat();
            seeds.push([&[4 + side, 0], &sealed[..]].concat());
        }
        for edits in [
            &[][..],
            &[0, 0, 4, 3],
            &[1, 0, 20, 2],
            &[2, 0, 0, 22],
            &[3, 0, 0, 22, 0, 22],
        ] {
            seeds.push([&[2 + side, 0], edits].concat());
            seeds.push([&[0x82 + side, 5], edits].concat());
        }
        seeds.push([&[side, 0], &framed(&[9; 17])[..]].concat());
    }
    seeds
}
