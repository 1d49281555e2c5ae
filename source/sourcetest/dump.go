package sourcetest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/zodb-convert/zodb-convert/zodb"
)

// LoadDump reads the file that tells what the real ZODB reads in a test
// database, see ReadDump.
func LoadDump(path string) ([]Transaction, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := ReadDump(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// ReadDump reads what Python has dumped: one JSON object a line for each
// transaction, with tid and oid in hex, all other bytes in base64, and null for
// the data of a deletion. A record that is a blob tells its size and sha256.
func ReadDump(r io.Reader) (list []Transaction, err error) {
	in := json.NewDecoder(bufio.NewReader(r))
	for n := 1; ; n++ {
		var x struct {
			TID                          hexID
			User, Description, Extension []byte
			Records                      []struct {
				OID  hexID
				Data []byte
				Blob *json.RawMessage
			}
		}
		if err := in.Decode(&x); err == io.EOF {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("transaction %d: %w", n, err)
		}
		txn := Transaction{TID: zodb.TID(x.TID), User: x.User, Description: x.Description, Extension: x.Extension}
		for _, r := range x.Records {
			blob, err := readBlob(r.Blob)
			if err != nil {
				return nil, fmt.Errorf("transaction %d, oid %v: %w", n, zodb.OID(r.OID), err)
			}
			txn.Records = append(txn.Records, Record{OID: zodb.OID(r.OID), Data: r.Data, Blob: blob})
		}
		list = append(list, txn)
	}
}

// readBlob reads what the dump says of a blob.
func readBlob(raw *json.RawMessage) (*Blob, error) {
	if raw == nil {
		return nil, nil
	}
	b := new(Blob)
	if err := json.Unmarshal(*raw, b); err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	if b.SHA256 == "" {
		return nil, fmt.Errorf("blob: no sha256 in %s", *raw)
	}
	return b, nil
}

// hexID is an oid or tid as 16 hex digits.
type hexID uint64

func (h *hexID) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 16, 64)
	if *h = hexID(n); len(b) != 16 && err == nil {
		err = fmt.Errorf("%q has not 16 digits", b)
	}
	return err
}
