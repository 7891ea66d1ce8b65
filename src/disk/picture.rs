//! Pictures of disks: a bar of boxes and a list below it, for the person who must say yes.

use super::layout::{Content, DiskLayout, Partition};
use super::table::Table;
use crate::size::Bytes;

const WIDTH: usize = 72;
// Room for a short name.
const NARROWEST: usize = 3;
// More boxes than this are a list only.
const MOST_BOXES: usize = 12;

/// What is drawn: the parts of a disk in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drawing {
    pub title: String,
    pub parts: Vec<Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub size: Bytes,
    /// `ext4`, `swap`, `free`…
    pub format: String,
    pub label: String,
    /// Where it is mounted, or will be.
    pub mounts: Vec<String>,
}

/// Draws a table as the layout fills it.
pub fn of_table(title: &str, table: &Table, disk: &DiskLayout) -> String {
    let part = |(index, partition): (usize, &Partition)| {
        let opened = partition.content.as_ref().map(Content::opened);
        let encrypted = if partition.luks().is_some() { " in LUKS" } else { "" };
        let mounts =
            disk.mounts().iter().filter(|m| m.partition == index).map(|m| m.mountpoint.to_owned()).collect();
        Part {
            name: partition.name.clone(),
            size: table.slots.get(index).map_or(Bytes(0), |slot| slot.size),
            format: opened.map_or_else(
                || partition.kind.to_string(),
                |content| format!("{}{encrypted}", content.format_name()),
            ),
            label: opened.and_then(|content| content.label()).unwrap_or_default().to_owned(),
            mounts,
        }
    };
    draw(&Drawing { title: title.to_owned(), parts: disk.partitions.iter().enumerate().map(part).collect() })
}

/// Draws to lines of at most 72 columns, each ended by a newline.
pub fn draw(drawing: &Drawing) -> String {
    let mut text = format!("{}\n", printable(&drawing.title));
    if drawing.parts.is_empty() {
        text += &format!("┌{0}┐\n│{1:^2$}│\n└{0}┘\n", "─".repeat(WIDTH - 2), "empty", WIDTH - 2);
        return text;
    }
    if drawing.parts.len() <= MOST_BOXES {
        text += &bar(&drawing.parts);
    }
    let column = |of: fn(&Part) -> String| {
        drawing.parts.iter().map(|part| of(part).chars().count()).max().unwrap_or(0)
    };
    let name = |part: &Part| if part.name.is_empty() { "-".to_owned() } else { printable(&part.name) };
    let (names, sizes) = (column(name), column(|part| part.size.to_string()));
    let formats = column(|part| printable(&part.format));
    for part in &drawing.parts {
        let label =
            if part.label.is_empty() { String::new() } else { format!("  \"{}\"", printable(&part.label)) };
        let mounts = if part.mounts.is_empty() {
            String::new()
        } else {
            format!("  on {}", printable(&part.mounts.join(", ")))
        };
        let line = format!(
            "  {:names$}  {:>sizes$}  {:formats$}{label}{mounts}",
            name(part),
            part.size.to_string(),
            printable(&part.format)
        );
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn bar(parts: &[Part]) -> String {
    let widths = widths(&parts.iter().map(|part| part.size.0).collect::<Vec<_>>());
    let edge = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|&width| "─".repeat(width)).collect();
        format!("{left}{}{right}\n", lines.join(middle))
    };
    let boxes: Vec<String> = parts.iter().zip(&widths).map(|(part, &width)| boxed(part, width)).collect();
    format!("{}│{}│\n{}", edge("┌", "┬", "┐"), boxes.join("│"), edge("└", "┴", "┘"))
}

fn boxed(part: &Part, width: usize) -> String {
    let name = if part.name.is_empty() { &part.format } else { &part.name };
    let full = format!("{} {}", printable(name), part.size);
    let text = if full.chars().count() + 2 <= width { full } else { printable(name) };
    let text: String = text.chars().take(width).collect();
    format!("{text:^width$}")
}

/// Shares the bar's inner columns by size; each box keeps room for a letter.
fn widths(sizes: &[u64]) -> Vec<usize> {
    let room = WIDTH - 1 - sizes.len();
    let spare = room - NARROWEST * sizes.len();
    let total: u128 = sizes.iter().map(|&size| u128::from(size)).sum::<u128>().max(1);
    let share = |size: u64| (u128::from(size) * spare as u128 / total) as usize;
    let mut widths: Vec<usize> = sizes.iter().map(|&size| NARROWEST + share(size)).collect();
    let left = room - widths.iter().sum::<usize>();
    if let Some(widest) = widths.iter_mut().max() {
        *widest += left;
    }
    widths
}

/// Labels come from disks: what could steer a terminal is shown as `?`.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str, size: Bytes, format: &str, label: &str, mounts: &[&str]) -> Part {
        let mounts = mounts.iter().map(|&at| at.to_owned()).collect();
        Part { name: name.into(), size, format: format.into(), label: label.into(), mounts }
    }

    #[test]
    fn a_disk_is_drawn_as_boxes_and_a_list() {
        let parts = vec![
            part("ESP", Bytes::gib(1), "vfat", "ESP", &["/boot"]),
            part("swap", Bytes::gib(4), "swap", "", &[]),
            part("root", Bytes::gib(27), "btrfs", "po\x1bol", &["/", "/home"]),
        ];
        let text = draw(&Drawing { title: "after".into(), parts });
        assert_eq!(
            text,
            "\
after
┌────┬──────────┬──────────────────────────────────────────────────────┐
│ESP │   swap   │                     root 27 GiB                      │
└────┴──────────┴──────────────────────────────────────────────────────┘
  ESP    1 GiB  vfat   \"ESP\"  on /boot
  swap   4 GiB  swap
  root  27 GiB  btrfs  \"po?ol\"  on /, /home
"
        );
    }

    #[test]
    fn every_bar_is_as_wide_as_every_other() {
        for sizes in [vec![1], vec![0, 0], vec![1, u64::MAX, u64::MAX], vec![5; MOST_BOXES]] {
            let parts: Vec<Part> =
                sizes.iter().map(|&size| part("漢字", Bytes(size), "-", "", &[])).collect();
            let text = draw(&Drawing { title: "t".into(), parts });
            assert!(text.lines().skip(1).take(3).all(|line| line.chars().count() == WIDTH), "{text}");
        }
        let many = vec![part("", Bytes(1), "x", "", &[]); 128];
        assert_eq!(draw(&Drawing { title: "t".into(), parts: many }).lines().count(), 129);
        assert!(draw(&Drawing { title: "t".into(), parts: vec![] }).contains("empty"));
    }
}
