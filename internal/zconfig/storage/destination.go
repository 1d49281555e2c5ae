package storage

import "strings"

// WithoutBucket is why keys of S3 have no effect where no bucket is named.
const WithoutBucket = "no s3-bucket-name is given, so that all blobs go to PostgreSQL"

// destination gives a storage as one to write.
func destination(n *node) (*Destination, error) {
	if n.is.name != "pgjsonb" {
		return nil, unwritable(n)
	}
	r := n.reader()
	out := &Destination{Pos: n.pos, PGJSONB: PGJSONB{
		DSN: r.text("dsn"), HistoryPreserving: r.get("history-preserving").bool, BlobThreshold: r.get("blob-threshold").number,
		S3: S3{
			Bucket: r.text("s3-bucket-name"), Prefix: r.text("s3-prefix"), EndpointURL: r.text("s3-endpoint-url"), Region: r.text("s3-region"),
			AccessKey: r.text("s3-access-key"), SecretKey: r.text("s3-secret-key"), PlainHTTP: !r.get("s3-use-ssl").bool,
		},
	}}
	if err := checkPGJSONB(r, &out.PGJSONB); err != nil {
		return nil, err
	}
	if out.PGJSONB.S3.Bucket == "" {
		out.Unused = bucketKeys(n)
	}
	readers := []*reader{r}
	for _, around := range n.around {
		readers = append(readers, around.reader())
	}
	unused, err := finish(readers...)
	out.Unused = append(out.Unused, unused...)
	sortByPlace(out.Unused)
	return out, err
}

// unwritable says why a storage cannot be a destination.
func unwritable(n *node) error {
	switch n.is.name {
	case "zlibstorage", "serverzlibstorage":
		return refuse(n.pos, "name the <pgjsonb> in it as the destination", "<%s> would compress the records, which zodb-pgjsonb cannot read", n.is.name)
	case "blobstorage", "s3blobstorage":
		return refuse(n.pos, "name the <pgjsonb> in it as the destination; it keeps blobs itself", "<%s> would keep blobs outside of zodb-pgjsonb, which this version cannot write", n.is.name)
	}
	return refuse(n.pos, "name a <pgjsonb>", "<%s> cannot be the destination: this version writes pgjsonb only", n.is.name)
}

// checkPGJSONB refuses what zodb-pgjsonb refuses when it opens the storage.
func checkPGJSONB(r *reader, out *PGJSONB) error {
	dsn, threshold := r.get("dsn"), r.get("blob-threshold")
	access, secret := r.get("s3-access-key"), r.get("s3-secret-key")
	switch {
	case strings.TrimSpace(dsn.text) == "":
		return refuse(dsn.pos, "", "the dsn of <pgjsonb> is empty")
	case !strings.ContainsAny(dsn.text, "="+Unknown) && !strings.HasPrefix(dsn.text, "postgresql://") && !strings.HasPrefix(dsn.text, "postgres://"):
		return refuse(dsn.pos, "it looks like dbname=zodb user=zodb host=localhost, or like postgresql://zodb@localhost/zodb", "the dsn of <pgjsonb> is none")
	case threshold.number < 0:
		return refuse(threshold.pos, "", "blob-threshold is below 0")
	case access.text != "" && secret.text == "":
		return refuse(access.pos, bothOrNone, "s3-access-key is given without s3-secret-key")
	case secret.text != "" && access.text == "":
		return refuse(secret.pos, bothOrNone, "s3-secret-key is given without s3-access-key")
	}
	return nil
}

const bothOrNone = "give both, or none of them: the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile or the machine's role count then"

// bucketKeys lists the keys that need a bucket.
func bucketKeys(n *node) []Unused {
	var list []Unused
	for _, spec := range n.is.keys {
		if spec.effect != acts || spec.name != "blob-threshold" && !strings.HasPrefix(spec.name, "s3-") {
			continue
		}
		for _, v := range n.values[spec.name] {
			if v.given {
				list = append(list, Unused{Section: n.is.name, Key: spec.name, Pos: v.pos, Why: WithoutBucket})
			}
		}
	}
	return list
}
