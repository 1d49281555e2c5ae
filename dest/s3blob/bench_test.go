package s3blob

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/zodb-convert/zodb-convert/source"
	"github.com/zodb-convert/zodb-convert/zodb"
)

const transfers = 8

func benchBlobs(b *testing.B, n int, size func(i int) int64) (blobs []*source.Blob, total int64) {
	dir := b.TempDir()
	random := rand.NewChaCha8([32]byte{1})
	for i := range n {
		path := filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.CopyN(f, random, size(i)); err != nil {
			b.Fatal(err)
		}
		f.Close()
		total += size(i)
		blobs = append(blobs, &source.Blob{OID: zodb.OID(i), TID: 1, Size: size(i), Path: path,
			Open: func(context.Context) (source.BlobReader, error) { return os.Open(path) }})
	}
	return blobs, total
}

// benchPut measures this package, and rclone with the same number of transfers
// where it is installed.
func benchPut(b *testing.B, n int, size func(i int) int64) {
	server := shared.Server(b)
	blobs, total := benchBlobs(b, n, size)
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(total)
		for b.Loop() {
			s := mustOpen(b, configFor(server, server.NewBucket(b)))
			var group errgroup.Group
			group.SetLimit(transfers)
			for _, blob := range blobs {
				group.Go(func() error { return s.Put(b.Context(), Key(blob.OID, blob.TID), blob, nil) })
			}
			if err := group.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("rclone", func(b *testing.B) {
		rclone, err := exec.LookPath("rclone")
		if err != nil {
			b.Skip("rclone is not installed")
		}
		b.SetBytes(total)
		for b.Loop() {
			cmd := exec.CommandContext(b.Context(), rclone, "copy", "--config", "/dev/null", "--no-check-dest", "--transfers", fmt.Sprint(transfers),
				filepath.Dir(blobs[0].Path), "there:"+server.NewBucket(b)+"/site/one")
			cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "AWS_") }), "RCLONE_CONFIG_THERE_TYPE=s3", "RCLONE_CONFIG_THERE_PROVIDER=Other",
				"RCLONE_CONFIG_THERE_ENDPOINT="+server.URL(), "RCLONE_CONFIG_THERE_REGION=us-east-1", "RCLONE_CONFIG_THERE_NO_CHECK_BUCKET=true",
				"RCLONE_CONFIG_THERE_ACCESS_KEY_ID="+server.AccessKey, "RCLONE_CONFIG_THERE_SECRET_ACCESS_KEY="+server.SecretKey)
			if out, err := cmd.CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
}

func BenchmarkPutSmall(b *testing.B) {
	benchPut(b, 1000, func(i int) int64 { return int64(20+i*37%181) << 10 })
}

func BenchmarkPutLarge(b *testing.B) {
	benchPut(b, 4, func(int) int64 { return 256 << 20 })
}
