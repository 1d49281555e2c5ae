//go:build unix

package jsonb_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

// pageRecord is a record of a small content object with a text of some size.
func pageRecord(text int) []byte {
	var b bytes.Buffer
	b.WriteString("\x80\x03cplone.app.contenttypes.content\nDocument\nq\x00.\x80\x03}q\x01(")
	put := func(s string) {
		b.Write(binary.LittleEndian.AppendUint32([]byte("X"), uint32(len(s))))
		b.WriteString(s)
	}
	member := func(key, value string) { put(key); put(value) }
	member("id", "a-page")
	member("title", "A page")
	put("modified")
	b.WriteString("cdatetime\ndatetime\nC\x0a\x07\xe8\x05\x06\x07\x08\x09\x01\x02\x03\x85R")
	put("__parent__")
	b.WriteString("C\x08\x00\x00\x00\x00\x00\x00\x01\x23cplone.folder\nFolder\n\x86Q")
	put("effective")
	b.WriteString("N")
	put("subjects")
	b.WriteString("(")
	put("one")
	put("two")
	b.WriteString("t")
	put("version")
	b.WriteString("K\x07")
	member("text", strings.Repeat("A sentence. ", text/12))
	b.WriteString("u.")
	return b.Bytes()
}

// asPrinted gives a row the text that PostgreSQL prints.
func asPrinted(b *testing.B, row *jsonb.Row) jsonb.Stored {
	b.Helper()
	d := json.NewDecoder(bytes.NewReader(row.State))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		b.Fatal(err)
	}
	return jsonb.Stored{Module: slices.Clone(row.Module), Name: slices.Clone(row.Name),
		State: jsonb.Printed(value), Refs: slices.Clone(row.Refs)}
}

// BenchmarkJudge tells MB/s of pickle and records a second on one core; beside it
// the encoder with the same records.
func BenchmarkJudge(b *testing.B) {
	for _, bench := range []struct {
		name    string
		records [][]byte
	}{
		{"site", siteRecords(b)},
		{"300B", slices.Repeat([][]byte{pageRecord(0)}, 1000)},
		{"3300B", slices.Repeat([][]byte{pageRecord(3000)}, 1000)},
	} {
		encoder := jsonb.NewEncoder(jsonb.Options{})
		var rows []jsonb.Stored
		for _, r := range bench.records {
			row, err := encoder.Encode(r)
			if err != nil {
				b.Fatal(err)
			}
			rows = append(rows, asPrinted(b, row))
		}
		b.Run(bench.name, func(b *testing.B) {
			var judge jsonb.Judge
			i := 0
			measure(b, bench.records, func(record []byte) {
				if v := judge.Compare(record, &rows[i]); v.Outcome > jsonb.Deviating {
					b.Fatal(v)
				}
				i = (i + 1) % len(rows)
			})
		})
		b.Run(bench.name+"/encode", func(b *testing.B) {
			measure(b, bench.records, func(record []byte) {
				if _, err := encoder.Encode(record); err != nil {
					b.Fatal(err)
				}
			})
		})
	}
}
