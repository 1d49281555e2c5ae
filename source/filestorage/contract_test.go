package filestorage_test

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

func TestSampleIsTheOneThatZODBReads(t *testing.T) {
	d := sample()
	sum := sha256.Sum256(d.buf)
	if got := hex.EncodeToString(sum[:]); got != "e4bef19215256064a5f283a4b941bcb266b96dae38792d786b517f601eadfefb" {
		t.Fatalf("sample has sha256 %s", got)
	}
}

func TestContract(t *testing.T) {
	for _, c := range []struct {
		name string
		data *data
	}{
		{"no transaction", newData()},
		{"sample", sample()},
		{"various", various()},
	} {
		t.Run(c.name, func(t *testing.T) { contract(t, file(t, c.data.buf), c.data.want) })
	}
}
