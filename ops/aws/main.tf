# What a pipeline needs of AWS, as an example to start from: a stream that an IoT rule fills, a bucket for the lake with
# notifications of new objects, and a role that may do what the stages do and nothing else.
#
#     terraform init && terraform plan -var name=iot-telemetry
#
# Checked by `terraform fmt`. It has not been applied: nothing of this project has been run against AWS.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "name" {
  description = "The stream's name, and the beginning of all others"
  type        = string
  default     = "iot-telemetry"
}

variable "topic" {
  description = "Which messages go into the stream: a topic filter of AWS IoT"
  type        = string
  default     = "iot/telemetry/#"
}

variable "shards" {
  description = "1 MB or 1,000 records a second in, each; packed records (aggregate = true) count as one"
  type        = number
  default     = 2
}

variable "trusted_service" {
  description = "Who takes the role: ec2.amazonaws.com, ecs-tasks.amazonaws.com, ..."
  type        = string
  default     = "ec2.amazonaws.com"
}

# --- the stream, which keeps what a pipeline that is down has not read

resource "aws_kinesis_stream" "telemetry" {
  name             = var.name
  shard_count      = var.shards
  retention_period = 48
  encryption_type  = "KMS"
  kms_key_id       = "alias/aws/kinesis"
}

# --- who reads which shard, where several workers share the stream; a worker would create it as well

resource "aws_dynamodb_table" "leases" {
  name         = var.name
  billing_mode = "PAY_PER_REQUEST"
  hash_key     = "leaseKey"

  attribute {
    name = "leaseKey"
    type = "S"
  }
}

# --- the lake

resource "aws_s3_bucket" "lake" {
  bucket_prefix = "${var.name}-"
}

resource "aws_s3_bucket_public_access_block" "lake" {
  bucket                  = aws_s3_bucket.lake.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_versioning" "lake" {
  bucket = aws_s3_bucket.lake.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "lake" {
  bucket = aws_s3_bucket.lake.id
  rule {
    id     = "archive"
    status = "Enabled"
    filter {
      prefix = "lake/"
    }
    transition {
      days          = 30
      storage_class = "GLACIER_IR"
    }
    # Parts of uploads that were broken off cost money, and nobody sees them.
    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }
  # What workers set aside is deleted within seconds, and their heads are written again with each group.
  rule {
    id     = "set-aside"
    status = "Enabled"
    filter {
      prefix = "lake/_pipeline/"
    }
    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }
  # What --keep has deleted stays as an older version for so long.
  rule {
    id     = "deleted-backups"
    status = "Enabled"
    filter {
      prefix = "backups/"
    }
    noncurrent_version_expiration {
      noncurrent_days = 7
    }
  }
}

# --- notifications of what others put under inbox/, for a source `s3` with a queue

resource "aws_sqs_queue" "objects" {
  name                       = "${var.name}-objects"
  visibility_timeout_seconds = 300
  message_retention_seconds  = 1209600
  # A message that nobody can make sense of ends here instead of coming again for ever.
  redrive_policy = jsonencode({ deadLetterTargetArn = aws_sqs_queue.objects_dead.arn, maxReceiveCount = 10 })
}

resource "aws_sqs_queue" "objects_dead" {
  name                      = "${var.name}-objects-dead"
  message_retention_seconds = 1209600
}

data "aws_iam_policy_document" "bucket_may_notify" {
  statement {
    actions   = ["sqs:SendMessage"]
    resources = [aws_sqs_queue.objects.arn]
    principals {
      type        = "Service"
      identifiers = ["s3.amazonaws.com"]
    }
    condition {
      test     = "ArnEquals"
      variable = "aws:SourceArn"
      values   = [aws_s3_bucket.lake.arn]
    }
  }
}

resource "aws_sqs_queue_policy" "objects" {
  queue_url = aws_sqs_queue.objects.id
  policy    = data.aws_iam_policy_document.bucket_may_notify.json
}

resource "aws_s3_bucket_notification" "objects" {
  bucket = aws_s3_bucket.lake.id
  queue {
    queue_arn     = aws_sqs_queue.objects.arn
    events        = ["s3:ObjectCreated:*"]
    filter_prefix = "inbox/"
  }
  depends_on = [aws_sqs_queue_policy.objects]
}

# --- devices to the stream; what the rule can't deliver is kept, and not dropped

resource "aws_iot_topic_rule" "telemetry" {
  name        = replace(var.name, "-", "_")
  enabled     = true
  sql         = "SELECT * FROM '${var.topic}'"
  sql_version = "2016-03-23"

  kinesis {
    role_arn    = aws_iam_role.rule.arn
    stream_name = aws_kinesis_stream.telemetry.name
    # One device's readings stay in order.
    partition_key = "$${clientid()}"
  }

  error_action {
    s3 {
      role_arn    = aws_iam_role.rule.arn
      bucket_name = aws_s3_bucket.lake.id
      key         = "rule-errors/$${timestamp()}-$${newuuid()}.json"
    }
  }
}

data "aws_iam_policy_document" "iot_takes_role" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["iot.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "rule" {
  name_prefix        = "${var.name}-rule-"
  assume_role_policy = data.aws_iam_policy_document.iot_takes_role.json
}

resource "aws_iam_role_policy" "rule" {
  role = aws_iam_role.rule.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [
      { Effect = "Allow", Action = "kinesis:PutRecord", Resource = aws_kinesis_stream.telemetry.arn },
      { Effect = "Allow", Action = "s3:PutObject", Resource = "${aws_s3_bucket.lake.arn}/rule-errors/*" },
    ]
  })
}

# --- the pipeline: the policies beside this file, which name what each stage asks for

data "aws_iam_policy_document" "pipeline_is_run" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [var.trusted_service]
    }
  }
}

resource "aws_iam_role" "pipeline" {
  name_prefix        = "${var.name}-pipeline-"
  assume_role_policy = data.aws_iam_policy_document.pipeline_is_run.json
}

resource "aws_iam_instance_profile" "pipeline" {
  name_prefix = "${var.name}-pipeline-"
  role        = aws_iam_role.pipeline.name
}

locals {
  arns = {
    stream_arn = aws_kinesis_stream.telemetry.arn
    bucket_arn = aws_s3_bucket.lake.arn
    queue_arn  = aws_sqs_queue.objects.arn
    leases_arn = aws_dynamodb_table.leases.arn
  }
  policies = {
    source-kinesis         = {}
    source-kinesis-workers = {}
    sink-parquet           = { prefix = "lake" }
    sink-parquet-workers   = { prefix = "lake" }
    source-s3              = { prefix = "inbox" }
    source-s3-queue        = {}
    backup                 = { prefix = "backups" }
  }
}

# Listing is allowed below a prefix only (`s3:prefix` in the policies). The stages and backups count on 404, and not 403, for a
# key that is not there: S3 answers so to whoever may list it, and takes the key for `s3:prefix` then, as the developers of
# Ceph have found and follow since 2026 (github.com/ceph/ceph/pull/68577). A store where a first backup is refused with 403 needs
# `s3:ListBucket` without the condition.
resource "aws_iam_role_policy" "pipeline" {
  for_each = local.policies
  name     = each.key
  role     = aws_iam_role.pipeline.id
  policy   = templatefile("${path.module}/policies/${each.key}.json", merge(local.arns, each.value))
}

output "environment" {
  description = "For /etc/pipeline/environment"
  value = {
    KINESIS_STREAM = aws_kinesis_stream.telemetry.name
    S3_URL         = "s3://${aws_s3_bucket.lake.id}/lake"
    SQS_URL        = aws_sqs_queue.objects.id
  }
}
