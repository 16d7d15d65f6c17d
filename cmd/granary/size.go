package main

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// sizeForms says in errors and help what parseSize takes.
const sizeForms = "bytes, or a number with Ki, Mi, Gi, Ti (also KiB ... TiB; powers of 1024) or k, M, G, T (powers of 1000), such as 8GiB, 1.5Gi or 10G"

var sizeUnits = map[string]int64{
	"": 1, "B": 1,
	"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
	"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// parseSize reads a size in bytes as Kubernetes writes it. The result is positive
// unless it says 0; fractions of a byte are refused.
func parseSize(s string) (int64, error) {
	digits := strings.TrimLeft(s, "0123456789.")
	number, suffix := s[:len(s)-len(digits)], digits
	unit, ok := sizeUnits[suffix]
	value, isNumber := new(big.Rat).SetString(number)
	if !ok || !isNumber || number == "" {
		return 0, fmt.Errorf("size %q: give %s", s, sizeForms)
	}
	value.Mul(value, new(big.Rat).SetInt64(unit))
	if !value.IsInt() {
		return 0, fmt.Errorf("size %q is not a whole number of bytes", s)
	}
	if !value.Num().IsInt64() {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return value.Num().Int64(), nil
}

// formatSize writes a size for a person, with about three digits.
func formatSize(n int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	if n < 1024 && n > -1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	value, unit := float64(n)/1024, 0
	for (value >= 1000 || value <= -1000) && unit < len(units)-1 {
		value, unit = value/1024, unit+1
	}
	decimals := 2
	switch {
	case value == float64(int64(value)):
		decimals = 0
	case value >= 100 || value <= -100:
		decimals = 0
	case value >= 10 || value <= -10:
		decimals = 1
	}
	return strconv.FormatFloat(value, 'f', decimals, 64) + " " + units[unit]
}

// sizeFlag is a flag that takes a size.
type sizeFlag int64

func (f *sizeFlag) Set(s string) error {
	n, err := parseSize(s)
	if err == nil {
		*f = sizeFlag(n)
	}
	return err
}
func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strings.ReplaceAll(formatSize(int64(*f)), " ", "")
}
func (f *sizeFlag) Type() string { return "size" }
