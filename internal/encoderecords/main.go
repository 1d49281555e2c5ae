// Command encoderecords turns records into rows for scripts/oracle-codec: it
// reads JSON lines with record_hex and writes them again with the class, the
// state, the references and the forms that package jsonb makes of them, or with
// the reason of a reject. With the argument --preserve-sharing it keeps shared
// parts one.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/zodb-convert/zodb-convert/pipeline/jsonb"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "encoderecords:", err)
		os.Exit(1)
	}
}

func run() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<30)
	out := bufio.NewWriter(os.Stdout)
	encoder := jsonb.NewEncoder(jsonb.Options{PreserveSharing: slices.Contains(os.Args[1:], "--preserve-sharing")})
	for lines.Scan() {
		line := map[string]any{}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return err
		}
		if err := encode(encoder, line); err != nil {
			return err
		}
		text, err := json.Marshal(line)
		if err != nil {
			return err
		}
		if _, err := out.Write(append(text, '\n')); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), out.Flush())
}

func encode(encoder *jsonb.Encoder, line map[string]any) error {
	text, _ := line["record_hex"].(string)
	record, err := hex.DecodeString(text)
	if err != nil {
		return err
	}
	row, err := encoder.Encode(record)
	if err != nil {
		var reject *jsonb.RejectError
		if !errors.As(err, &reject) || reject.Stack != nil {
			return fmt.Errorf("record %s: %w", text, err)
		}
		line["reject"] = reject.Reason
		return nil
	}
	line["class_mod"], line["class_name"] = string(row.Module), string(row.Name)
	line["state"] = string(row.State) // as text: its numbers are compared by their digits
	line["refs"] = row.Refs
	line["new_codec"] = row.NewCodec
	line["forms"] = row.Forms.AddTo(map[string]int64{})
	return nil
}
