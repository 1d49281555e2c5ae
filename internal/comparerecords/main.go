// Command comparerecords reads rows of a destination as package jsonb does, for
// scripts/oracle-codec, and compares them with the records that they were made
// of. It takes JSON lines with record_hex, class_mod, class_name, the state as
// PostgreSQL prints it, and the verdict of the Python reader (same, shared,
// reject or unloadable), and agrees with that, or tells where it does not.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "comparerecords:", err)
		os.Exit(1)
	}
}

// line is what a line tells of a row.
type line struct {
	ID        string `json:"id"`
	RecordHex string `json:"record_hex"`
	Module    string `json:"class_mod"`
	Name      string `json:"class_name"`
	State     string `json:"state"`
	Verdict   string `json:"verdict"`
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<30)
	counts, wrong := map[string]int{}, 0
	for lines.Scan() {
		var l line
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return err
		}
		counts[l.Verdict]++
		if l.Verdict == "reject" || l.Verdict == "unloadable" {
			continue
		}
		verdict, err := judge(&l)
		if err == nil && verdict != l.Verdict {
			err = fmt.Errorf("%s, to the Python reader %s", verdict, l.Verdict)
		}
		if err != nil {
			wrong++
			if wrong <= 10 {
				fmt.Printf("%s: %v\n  %.600s\n  %.300s\n", l.ID, err, l.State, l.RecordHex)
			}
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	fmt.Printf("our reader: %v, %d wrong\n", counts, wrong)
	if wrong > 0 || counts["same"] == 0 {
		return errors.New("the readers do not agree")
	}
	return nil
}

// judge compares what comes out of the row with what went in.
func judge(l *line) (verdict string, err error) {
	source, err := hex.DecodeString(l.RecordHex)
	if err != nil {
		return "", err
	}
	record, err := jsonb.AppendRecord(nil, l.Module, l.Name, []byte(l.State))
	if err != nil {
		return "", err
	}
	strict, err := jsonb.Comparison{OldStringsAreBytes: true}.Equal(source, record)
	if strict == "" || err != nil {
		return "same", err
	}
	lax, err := jsonb.Comparison{OldStringsAreBytes: true, IgnoreSharing: true}.Equal(source, record)
	if lax != "" && err == nil {
		err = errors.New(lax)
	}
	return "shared", err
}
