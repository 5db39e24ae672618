use super::*;
use clap::Parser;

fn all_planned(line: &str) -> Result<Vec<Plan>, String> {
    let args = Args::try_parse_from(std::iter::once("escp").chain(line.split_whitespace()))
        .map_err(|error| error.to_string())?;
    plan(&args, &Config::default())
}

fn planned(line: &str) -> Result<Plan, String> {
    let [plan] =
        <[Plan; 1]>::try_from(all_planned(line)?).map_err(|plans| format!("{} sessions", plans.len()))?;
    Ok(plan)
}

fn refused(line: &str) -> String {
    planned(line).map(|plan| format!("{plan:?}")).unwrap_err()
}

#[test]
fn directions_follow_from_the_operands() {
    let up = planned("a ./b:c user@host:dir").unwrap();
    assert_eq!(up.job.host, "host");
    let NearTransfer::Upload { sources, target, directory_required } = up.job.transfer else { panic!() };
    assert_eq!(sources, [Source::Path(b"a".to_vec()), Source::Path(b"./b:c".to_vec())]);
    assert_eq!((target.as_slice(), directory_required), (&b"dir"[..], true));

    let down = planned("[::1]:a [::1]:b* .").unwrap();
    assert_eq!(down.job.host, "[::1]");
    let NearTransfer::Download { sources, target, directory_required, .. } = down.job.transfer else {
        panic!()
    };
    assert_eq!(sources, [b"a".to_vec(), b"b*".to_vec()]);
    assert_eq!((target.as_slice(), directory_required), (&b"."[..], true));

    let home = planned("file host:").unwrap();
    let NearTransfer::Upload { target, directory_required, .. } = home.job.transfer else { panic!() };
    assert!(target.is_empty() && !directory_required);
}

#[test]
fn each_host_has_one_session_in_the_order_of_the_operands() {
    let plans = all_planned("h1:a u@h2:b h1:c h2:d scp://h1/e scp://h1:22/f .").unwrap();
    let told: Vec<_> = plans
        .iter()
        .map(|plan| {
            let NearTransfer::Download { sources, directory_required, .. } = &plan.job.transfer else {
                panic!()
            };
            assert!(directory_required, "several sources need a directory, on whatever hosts they are");
            let sources: Vec<_> = sources.iter().map(|source| String::from_utf8_lossy(source)).collect();
            format!("{} {}", plan.job.host, sources.join(" "))
        })
        .collect();
    assert_eq!(told, ["h1 a c e", "h2 b", "h2 d", "h1 f"]);
}

#[test]
fn what_cannot_be_done_is_said_in_one_sentence() {
    for (line, words) in [
        ("", "a source and a target"),
        ("a", "a target is needed"),
        ("a b", "both on this host"),
        ("h1:a h2:b", "between two remote hosts"),
        ("-3 h1:a h2:b", "between two remote hosts"),
        ("-R h1:a h2:b", "between two remote hosts"),
        ("h:a b .", "both on this host"),
        ("-O a h:", "escp speaks its own"),
        ("-s a h:", "escp speaks its own"),
        ("-X nrequests=3 a h:", "escp speaks its own"),
        ("dummy:1G h:", "needs --ioengine dummy"),
        ("--ioengine dummy a h:", "dummy:SIZE"),
        ("--ioengine dummy h:a .", "dummy:SIZE"),
        ("--ioengine dummy dummy:x h:", "not a size"),
        ("--ioengine dummy::posix dummy:1G h:", "both sides or on neither"),
        ("--ioengine shmem a h:", "unknown I/O engine 'shmem'"),
        ("-t 0 a h:", "1 to 256"),
        ("-t 257 a h:", "1 to 256"),
        ("--depth 1 a h:", "2 to 64"),
        ("--blocksize 255K a h:", "256K to 8M"),
        ("--blocksize 16M a h:", "256K to 8M"),
        ("--blocksize 300000 a h:", "multiple of 4K"),
        ("-l 0 a h:", "not a rate"),
        ("-l fast a h:", "not a rate"),
        ("--escp_portrange x a h:", "not a port"),
        ("--escp_port 1 --escp_portrange 1-2 a h:", "number of ports"),
        ("--escp_port 0 a h:", "invalid value '0'"),
        ("-P 0 a h:", "invalid value '0'"),
        ("-P 70000 a h:", "invalid value '70000'"),
        ("-Z a h:", "unexpected argument '-Z'"),
    ] {
        let said = refused(line);
        assert!(said.contains(words), "{line}: {said}");
    }
}

#[test]
fn paths_that_no_host_has_are_refused_before_anybody_logs_in() {
    let (fits, long) = ("x".repeat(MAX_PATH), "x".repeat(MAX_PATH + 1));
    for line in [format!("a h:{fits}"), format!("h:{fits} .")] {
        planned(&line).unwrap();
    }
    for line in [format!("a h:{long}"), format!("h:{long} .")] {
        let said = refused(&line);
        assert!(said.contains("a path of h has 4097 bytes") && said.len() < 200, "{said}");
    }
}

#[test]
fn harmless_flags_of_scp_change_nothing() {
    planned("-T -3 -R a h:").unwrap();
}

#[test]
fn rates_sizes_and_ports_mean_what_they_say() {
    for (text, bits) in [("8000", 8_000_000), ("800M", 800_000_000), ("10G", 10_000_000_000), ("1k", 1000)] {
        assert_eq!(rate(text), Ok(bits), "{text}");
    }
    assert_eq!(planned("--blocksize 4M a h:").unwrap().job.options.block_size, 4 << 20);
    assert_eq!(planned("a h:").unwrap().job.far_ports, None);
    assert_eq!(planned("--escp_port 2000 a h:").unwrap().job.far_ports, Some((2000, 2010)));
    assert_eq!(
        planned("--escp_port 2000 --escp_portrange 3 a h:").unwrap().job.far_ports,
        Some((2000, 2003))
    );
    assert_eq!(planned("--escp_portrange 20 a h:").unwrap().job.far_ports, Some((1232, 1252)));
    assert_eq!(planned("--escp_portrange 5000-5005 a h:").unwrap().job.far_ports, Some((5000, 5005)));
    assert_eq!(planned("--escp_port 65530 a h:").unwrap().job.far_ports, Some((65530, 65535)));
}

#[test]
fn one_machine_gets_no_more_streams_than_it_serves() {
    for (asked, cores, want) in
        [(None, 1, (4, 1)), (None, 2, (4, 2)), (None, 4, (4, 4)), (None, 64, (4, 4)), (Some(3), 2, (3, 3))]
    {
        assert_eq!(streams(asked, 4, cores), Ok(want), "{asked:?} on {cores} cores");
    }
    assert!(streams(Some(0), 4, 2).is_err() && streams(Some(257), 4, 2).is_err());
}

#[test]
fn engines_are_chosen_per_role_not_per_host() {
    let kinds = |line: &str| {
        let job = planned(line).unwrap().job;
        (job.near_kind, job.far_kind)
    };
    assert_eq!(kinds("a h:"), (EngineKind::Uring, EngineKind::Uring));
    assert_eq!(kinds("--ioengine posix a h:"), (EngineKind::Posix, EngineKind::Posix));
    assert_eq!(kinds("--ioengine posix::uring a h:"), (EngineKind::Posix, EngineKind::Uring));
    assert_eq!(kinds("--ioengine posix::uring h:a ."), (EngineKind::Uring, EngineKind::Posix));
}

#[test]
fn dummy_sources_carry_bytes() {
    let up = planned("--ioengine dummy dummy:100G dummy:1M h:").unwrap().job;
    assert!(up.options.dummy);
    let NearTransfer::Upload { sources, .. } = up.transfer else { panic!() };
    assert_eq!(sources[0], Source::Dummy { name: b"dummy:100G".to_vec(), size: 100 << 30 });
    let down = planned("--ioengine dummy h:dummy:1K .").unwrap().job;
    let NearTransfer::Download { sources, .. } = down.transfer else { panic!() };
    assert_eq!(sources, [b"dummy:1024".to_vec()]);
}

#[test]
fn flags_reach_the_job() {
    let job =
        planned("-rp -C -6 --inplace --no-fsync --nodirect --nochecksum -l 10G -t 7 -vv a h:").unwrap().job;
    let options = job.options;
    assert!(options.recursive && options.preserve && options.inplace);
    assert!(!options.durable && !options.direct && !options.checksum);
    assert_eq!((job.streams, job.rate_limit, job.family), (7, Some(10_000_000_000), Family::V6));
    assert_eq!((job.compress, job.verbose), (Some(9), 3));
    let plain = planned("a h:").unwrap().job;
    assert!(plain.options.durable && plain.options.direct && plain.options.checksum);
    assert_eq!((plain.compress, plain.rate_limit, plain.family), (None, None, Family::Any));
}
