//! Flipping bits in packets as TUN devices carry them: a `virtio_net_hdr`, then IPv4 with TCP.

use crate::tree::Noise;
use escp_sys::tun::PACKET_HEADER;
use std::ops::Range;

/// The checksum is yet to be computed; the receiving kernel takes it for right (linux/virtio_net.h).
const NEEDS_CHECKSUM: u8 = 1;
const TCP: u8 = 6;
/// Packets with less data than this are not flipped: what matters is file data.
const WORTH_A_FLIP: usize = 512;

/// Flips one bit of a TCP packet's data. Without `fits`, the checksum is that of the data before the flip, so
/// that whoever checks it sees the damage. False when the packet carries little or no data.
pub(super) fn flip(packet: &mut [u8], fits: bool, noise: &mut Noise) -> bool {
    let Some(data) = data(packet).filter(|data| data.len() >= WORTH_A_FLIP) else { return false };
    if !fits && !fix_checksum(packet) {
        return false;
    }
    let number = noise.number();
    let at = data.start + usize::try_from(number >> 16).unwrap_or(0) % data.len();
    packet[at] ^= 1 << (number & 7);
    true
}

/// Where the data of an IPv4 TCP packet lies.
fn data(packet: &[u8]) -> Option<Range<usize>> {
    let ip = packet.get(PACKET_HEADER..)?;
    if ip.first()? >> 4 != 4 || *ip.get(9)? != TCP {
        return None;
    }
    let tcp = PACKET_HEADER + usize::from(ip[0] & 15) * 4;
    let start = tcp + usize::from(packet.get(tcp + 12)? >> 4) * 4;
    (start < packet.len()).then_some(start..packet.len())
}

/// Computes the checksum that the sender left to its hardware, over the packet as a whole: it travels on as
/// one long packet. The field holds the sum of the pseudo header already.
fn fix_checksum(packet: &mut [u8]) -> bool {
    let word = |at: usize| usize::from(u16::from_ne_bytes([packet[at], packet[at + 1]]));
    if packet[0] & NEEDS_CHECKSUM != 0 {
        let start = PACKET_HEADER + word(6);
        let field = start + word(8);
        if field + 2 > packet.len() {
            return false;
        }
        let sum = internet_checksum(&packet[start..]);
        packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet[..PACKET_HEADER].fill(0);
    true
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    #[expect(clippy::cast_possible_truncation, reason = "at most 0xffff")]
    let folded = sum as u16;
    !folded
}

#[cfg(test)]
mod tests {
    use super::internet_checksum;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(internet_checksum(&[0x01]), !0x0100);
    }
}
