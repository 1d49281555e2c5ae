package storage

import (
	"math"
	"os"
	"path/filepath"
	"strings"

	"github.com/zodb-convert/zodb-convert/internal/zconfig"
)

// source gives a storage as one to read. base is where relative paths start, if
// not at the working directory.
func source(n *node, base string) (*Source, error) {
	b := &sourceBuilder{base: base, out: &Source{Pos: n.pos}}
	for _, around := range n.around {
		b.readers = append(b.readers, around.reader())
	}
	if err := b.add(n, blobDir{}); err != nil {
		return nil, err
	}
	unused, err := finish(b.readers...)
	b.out.Unused = append(b.out.Unused, unused...)
	sortByPlace(b.out.Unused)
	return b.out, err
}

type sourceBuilder struct {
	base    string
	out     *Source
	readers []*reader
}

// blobDir is the blob-dir of a <blobstorage> around a storage.
type blobDir struct {
	path string
	pos  zconfig.Position
}

func (b *sourceBuilder) add(n *node, around blobDir) error {
	r := n.reader()
	b.readers = append(b.readers, r)
	switch n.is.name {
	case "filestorage":
		return b.fileStorage(r, around)
	case "relstorage":
		return b.relStorage(r, around)
	case "blobstorage":
		dir := blobDir{r.text("blob-dir"), r.get("blob-dir").pos}
		switch {
		case dir.path == "":
			return refuse(dir.pos, "", "the blob-dir of <blobstorage> is empty")
		case around.path != "" && around.path != dir.path:
			return refuse(dir.pos, "leave one of them out", "two <blobstorage> around each other name different blob-dirs; the other is that of %s", around.pos)
		}
		return b.only(n, dir)
	case "zlibstorage", "serverzlibstorage":
		// Records say themselves whether they are compressed.
		return b.only(n, around)
	}
	return unreadable(n)
}

// only reads the storage in a wrapper.
func (b *sourceBuilder) only(n *node, around blobDir) error {
	if len(n.inner) == 0 {
		return refuse(n.pos, "", "there is no storage in <%s>", n.is.name)
	}
	return b.add(n.inner[0], around)
}

// unreadable says why a storage cannot be a source.
func unreadable(n *node) error {
	switch n.is.name {
	case "zeoclient", "clientstorage":
		return refuse(n.pos, "stop the ZEO server and name its Data.fs with <filestorage source>; zeo.conf of the server tells the path",
			"<%s> is read through a ZEO server, which a conversion cannot do", n.is.name)
	case "demostorage":
		return refuse(n.pos, "name the storage that you want as the source", "<demostorage> lays changes over another storage, which a conversion cannot do")
	case "before":
		return refuse(n.pos, "name the storage in it as the source", "<before> hides what is newer than its date, which a conversion cannot do")
	case "s3blobstorage":
		return refuse(n.pos, "", "<s3blobstorage> keeps blobs in S3, from where this version cannot read them")
	case "mappingstorage", "temporarystorage":
		return refuse(n.pos, "", "<%s> keeps nothing, so that there is nothing to convert", n.is.name)
	case "pgjsonb":
		return refuse(n.pos, "name a <filestorage> or a <relstorage>", "<pgjsonb> cannot be the source: this version reads FileStorage and RelStorage only")
	}
	return refuse(n.pos, "name a <filestorage> or a <relstorage>", "<%s> cannot be the source: this version reads FileStorage and RelStorage only", n.is.name)
}

func (b *sourceBuilder) fileStorage(r *reader, around blobDir) error {
	f := &FileStorage{}
	path, create, blobs := r.get("path"), r.get("create"), r.get("blob-dir")
	switch {
	case path.text == "":
		return refuse(path.pos, "", "the path of <filestorage> is empty")
	case create.bool:
		return refuse(create.pos, "take the key out", "create is on, by which a site would empty the source when it opens it")
	}
	var err error
	if f.Path, err = b.place(path); err != nil {
		return err
	}
	dir := value{text: around.path, pos: around.pos, key: "blob-dir"}
	if dir.text == "" {
		dir = blobs
	} else if blobs.text != "" && filepath.Clean(blobs.text) != filepath.Clean(dir.text) {
		return refuse(blobs.pos, "leave one of them out", "this blob-dir and that of the <blobstorage> around it are different; the other is that of %s", dir.pos)
	}
	if dir.text != "" {
		if f.BlobDir, err = b.place(dir); err != nil {
			return err
		}
	}
	b.out.FileStorage = f
	return nil
}

// place gives the path that a relative one of a zope.conf stands for. A site
// takes it from where it was started, which is its home as a rule.
func (b *sourceBuilder) place(v value) (string, error) {
	if b.base == "" || filepath.IsAbs(v.text) || strings.HasPrefix(v.text, Unknown) {
		return v.text, nil
	}
	path := filepath.Join(b.base, v.text)
	inHome, errHome := os.Stat(path)
	here, errHere := os.Stat(v.text)
	switch {
	case errHome == nil && errHere == nil && !os.SameFile(inHome, here):
		return "", refuse(v.pos, "write the whole path", "the relative path of %s exists in the instancehome and in the working directory, and they differ", v.key)
	case errHome != nil && errHere == nil:
		return v.text, nil
	}
	return path, nil
}

func (b *sourceBuilder) relStorage(r *reader, around blobDir) error {
	out := &RelStorage{KeepHistory: r.flag("keep-history"), SharedBlobDir: r.flag("shared-blob-dir")}
	switch {
	case around.path != "":
		return refuse(around.pos, "give <relstorage> the blob-dir", "a <blobstorage> cannot stand around a <relstorage>")
	case r.get("shared-blob-dir").bool && r.text("blob-dir") == "":
		return refuse(r.get("shared-blob-dir").pos, "", "shared-blob-dir is on, but no blob-dir is given")
	case len(r.n.inner) == 0:
		return refuse(r.n.pos, "write <postgresql>, <mysql> or <sqlite3> in it", "there is no database in <relstorage>")
	}
	for _, p := range []struct {
		key  string
		path *string
	}{{"blob-dir", &out.BlobDir}, {"replica-conf", &out.ReplicaConf}, {"ro-replica-conf", &out.ROReplicaConf}} {
		v := r.get(p.key)
		if v.text == "" {
			continue
		}
		var err error
		if *p.path, err = b.place(v); err != nil {
			return err
		}
	}
	database := r.n.inner[0].reader()
	b.readers = append(b.readers, database)
	b.out.RelStorage = out
	return b.adapter(database, out)
}

// WithoutReplicas is why keys about replicas have no effect with SQLite.
const WithoutReplicas = "a database in a file has no replicas"

// withoutReplicas notes that the keys about replicas mean nothing here.
func (b *sourceBuilder) withoutReplicas(out *RelStorage) {
	out.ReplicaConf, out.ROReplicaConf = "", ""
	for _, r := range b.readers {
		for _, key := range []string{"replica-conf", "ro-replica-conf"} {
			if v := r.get(key); v.given {
				b.out.Unused = append(b.out.Unused, Unused{Section: r.n.is.name, Key: key, Pos: v.pos, Why: WithoutReplicas})
			}
		}
	}
}

// adapter reads the database of a <relstorage>.
func (b *sourceBuilder) adapter(r *reader, out *RelStorage) error {
	switch r.n.is.name {
	case "postgresql":
		out.PostgreSQL = &PostgreSQL{DSN: r.text("dsn")}
	case "mysql":
		if pipe := r.get("named_pipe"); pipe.bool {
			return refuse(pipe.pos, "name host and port, or unix_socket", "named_pipe is on, by which this program cannot connect")
		}
		port := r.get("port")
		if port.number < 0 || port.number > math.MaxUint16 {
			return refuse(port.pos, "", "the port of <mysql> is none")
		}
		out.MySQL = &MySQL{
			Host: r.text("host"), User: r.text("user"), Password: r.text("passwd"), Database: r.text("db"), UnixSocket: r.text("unix_socket"),
			Port: port.number, ConnectTimeout: max(r.get("connect_timeout").number, 0), Compress: r.get("compress").bool,
			DefaultFile: r.text("read_default_file"), DefaultGroup: r.text("read_default_group"),
		}
	case "sqlite3":
		dir, err := b.place(r.get("data-dir"))
		if err != nil {
			return err
		}
		out.SQLite3 = &SQLite3{DataDir: dir}
		b.withoutReplicas(out)
	default:
		return refuse(r.n.pos, "", "a RelStorage in <%s> cannot be read: this version reads it in PostgreSQL, MySQL, MariaDB and SQLite", r.n.is.name)
	}
	for _, inner := range r.n.inner {
		b.readers = append(b.readers, inner.reader())
	}
	return nil
}
