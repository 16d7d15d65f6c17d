package main

import "testing"

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "512B": 512,
		"8GiB": 8 << 30, "8Gi": 8 << 30, "512MiB": 512 << 20, "64TiB": 64 << 40, "1Ki": 1 << 10, "3KiB": 3 << 10,
		"10G": 10e9, "10GB": 10e9, "5k": 5000, "5kB": 5000, "2M": 2e6, "1T": 1e12,
		"1.5Gi": 3 << 29, "0.5KiB": 512, "2.50k": 2500,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "G", "GiB", "-1", "+1", "1 GiB", " 1", "1g", "1gib", "1K", "1PiB", "1e3", "0x10", "1.2.3", ".", "1/2", "1_000",
		"1.5", "0.3KiB", "9223372036854775808", "9000000TiB",
	} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", text, got)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.50 KiB", 8 << 30: "8 GiB", 64 << 40: "64 TiB",
		12_345_678: "11.8 MiB", 999 << 20: "999 MiB", 1001 << 20: "0.98 GiB", -2048: "-2 KiB", 123_456: "121 KiB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}
